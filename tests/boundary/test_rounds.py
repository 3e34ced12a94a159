"""Rounds: every link once, nobody twice, and as few as can be."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetjax.boundary.rounds import broadcast_rounds, color_pairs, make_rounds
from hetjax.boundary.route import Move

devices = st.integers(0, 12)
links = st.lists(st.tuples(devices, devices), unique=True, max_size=80)


@settings(max_examples=300, deadline=None)
@given(links)
def test_links_are_parted_into_as_few_groups_as_the_busiest_device_has_links(found):
    """A device may be a source and a destination at once: these are two sides."""
    groups = color_pairs(found)
    assert sorted(itertools.chain.from_iterable(groups)) == sorted(found)
    for group in groups:
        assert len({source for source, _ in group}) == len(group) == len({destination for _, destination in group})
    degrees = Counter(("from", source) for source, _ in found) + Counter(("to", other) for _, other in found)
    assert len(groups) == max(degrees.values(), default=0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=60))
def test_rounds_carry_every_move_once_and_no_padding(pairs):
    moves = [
        Move(piece=(i,), source=source, source_slot=i, destination=destination, destination_slot=i)
        for i, (source, destination) in enumerate(pairs)
    ]
    rounds = make_rounds(moves)
    carried = [move for turn in rounds for on_link in turn.moves.values() for move in on_link]
    assert sorted(move.piece for move in carried) == sorted(m.piece for m in moves if m.source != m.destination)
    for turn in rounds:
        assert {len(on_link) for on_link in turn.moves.values()} == {turn.size}
        assert all((move.source, move.destination) == link for link, ms in turn.moves.items() for move in ms)
        assert len({source for source, _ in turn.moves}) == len({other for _, other in turn.moves}) == len(turn.moves)


def test_links_of_one_size_take_as_many_rounds_as_the_busiest_device_has():
    """Eight devices that all send one piece to all others: seven rounds with every device busy in each."""
    moves = [
        Move(piece=(i,), source=a, source_slot=b, destination=b, destination_slot=a)
        for i, (a, b) in enumerate(itertools.product(range(8), repeat=2))
    ]
    rounds = make_rounds(moves)
    assert len(rounds) == 7
    assert all(len(turn.moves) == 8 for turn in rounds)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 13, 64])
def test_a_broadcast_reaches_all_from_those_that_have_it_in_the_fewest_rounds(size):
    have = {0}
    rounds = broadcast_rounds(size)
    for pairs in rounds:
        sources, reached = zip(*pairs, strict=True)
        assert set(sources) <= have
        assert len(set(sources)) == len(sources)
        assert not set(reached) & have
        assert all(place in have for place in range(pairs[0][1])), "those below the first that receives have it"
        have |= set(reached)
    assert have == set(range(size))
    assert len(rounds) == (size - 1).bit_length()
