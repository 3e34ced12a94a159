import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.parts.groups import find_groups

OMNI = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"


def written_out(groups):
    return "".join(group.unit * group.repeats for group in groups)


def bodies(groups):
    return sum(len(group.unit) for group in groups)


def fewest_bodies(pattern):
    """By trying all ways to cut the pattern into pieces, and counting equal neighbours once."""
    best = len(pattern)
    for cuts in itertools.product((False, True), repeat=len(pattern) - 1):
        ends = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(pattern)]
        pieces = [pattern[a:b] for a, b in itertools.pairwise(ends)]
        best = min(best, sum(len(piece) for piece, _ in itertools.groupby(pieces)))
    return best


@settings(max_examples=60, deadline=None)
@given(st.text("ME*", min_size=1, max_size=9))
def test_groups_write_the_pattern_with_the_fewest_bodies(pattern):
    groups = find_groups(pattern)
    assert written_out(groups) == pattern
    assert bodies(groups) == fewest_bodies(pattern)
    assert len({group.name for group in groups}) == len(groups)


def test_the_52_layers_of_the_family_are_14_bodies():
    groups = find_groups(OMNI)
    assert (len(OMNI), written_out(groups), bodies(groups)) == (52, OMNI, 14)


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [("MMMM", [("M", 4)]), ("MEM*EMEM*E", [("MEM*E", 2)]), ("M*E", [("M", 1), ("*", 1), ("E", 1)])],
)
def test_of_equal_ones_there_are_the_most_rows(pattern, groups):
    assert [(group.unit, group.repeats) for group in find_groups(pattern)] == groups
