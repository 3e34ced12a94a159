"""Mixing, shuffling and going on: which sample each position of a stream has."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetjax.data.block_shuffle import BlockShuffle
from hetjax.data.order import SampleOrder
from hetjax.data.source_config import SourceConfig
from hetjax.data.sources import TrainSources
from hetjax.errors import DataError


class Sized:
    def __init__(self, samples, blocks=None):
        self.samples, self.blocks = samples, blocks

    def __len__(self):
        return self.samples


def make(sizes, weights=None, repeats=None, *, shuffle=True, seed=0, epochs=None, names="abcdef", blocks=None):
    configs = tuple(
        SourceConfig(
            path=name, weight=None if weights is None else weights[i], repeat=1 if repeats is None else repeats[i]
        )
        for i, name in zip(range(len(sizes)), names, strict=False)
    )
    sources = tuple(Sized(size, None if blocks is None else blocks[i]) for i, size in enumerate(sizes))
    joined = SimpleNamespace(path="a, b")
    return SampleOrder(
        TrainSources(configs=configs, sources=sources, joined=joined), shuffle=shuffle, seed=seed, epochs=epochs
    )


def sources_of(order, sizes, count, begin=0):
    """Which source each position has."""
    ends = np.cumsum(sizes)
    return [int(np.searchsorted(ends, order[i], side="right")) for i in range(begin, begin + count)]


def moved(state):
    """A state as a checkpoint gives it back, its keys in another order."""
    return json.loads(json.dumps(state, sort_keys=True))


def test_without_weights_each_epoch_has_every_sample_as_often_as_its_source_repeats():
    sizes, repeats = [5, 30, 7], [2, 1, 3]
    order = make(sizes, repeats=repeats)
    assert order.epoch == 10 + 30 + 21
    expected = sorted([*range(5)] * 2 + [*range(5, 35)] + [*range(35, 42)] * 3)
    for epoch in range(2):
        assert sorted(order[epoch * 61 + i] for i in range(61)) == expected
    half = make([10, 4], repeats=[0.5, 1])
    assert half.epoch == 9
    assert sorted(half[i] for epoch in (0, 1) for i in range(epoch * 9, epoch * 9 + 9) if half[i] < 10) == [*range(10)]


def test_sources_are_mixed_evenly_in_proportion_to_their_weights():
    sizes, weights = [1000, 300, 500], [0.7, 0.1, 0.2]
    order = make(sizes, weights)
    for window in (10, 100, 400):
        counts = np.bincount(sources_of(order, sizes, window, begin=777), minlength=3)
        assert np.abs(counts - window * np.asarray(weights)).max() <= 2
    assert np.bincount(sources_of(order, sizes, 1000), minlength=3).tolist() == [700, 100, 200]


def test_a_source_starts_over_with_each_of_its_samples_once_a_pass():
    order = make([50, 6], [1, 1])
    small = [each for each in map(order.__getitem__, range(60)) if each >= 50]
    assert [sorted(small[i : i + 6]) for i in range(0, 30, 6)] == [[*range(50, 56)]] * 5
    assert len({tuple(small[i : i + 6]) for i in range(0, 30, 6)}) > 2, "each pass has an order of its own"


def test_the_order_of_a_source_depends_on_no_other_source():
    alone, mixed = make([40]), make([40, 9, 25], [1, 0.3, 2])
    own = [each for each in map(mixed.__getitem__, range(150)) if each < 40]
    assert own == [alone[i] for i in range(len(own))]


def test_a_weight_of_0_draws_nothing_and_unshuffled_sources_come_in_their_order():
    assert set(sources_of(make([5, 5, 5], [1, 0, 1]), [5, 5, 5], 50)) == {0, 2}
    order = make([4, 2], shuffle=False)
    assert [order[i] for i in range(6) if order[i] < 4] == [0, 1, 2, 3]
    assert [order[i] for i in range(12) if order[i] >= 4] == [4, 5, 4, 5]


# grain's shuffle of a few samples takes milliseconds for each.
cases = st.lists(st.tuples(st.integers(300, 2000), st.integers(0, 5)), min_size=1, max_size=4).filter(
    lambda pairs: any(weight for _, weight in pairs)
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(cases, st.lists(st.integers(0, 9000), min_size=1, max_size=3), st.booleans(), st.booleans())
def test_a_stream_stopped_anywhere_goes_on_with_the_same_samples(pairs, stops, shuffle, weighted):
    sizes, weights = zip(*pairs, strict=True)
    args = (sizes, weights if weighted else None)
    whole, order = (make(*args, shuffle=shuffle) for _ in range(2))
    for stop in sorted(stops):
        state = moved(order.state(stop))
        order = make(*args, shuffle=shuffle)
        order.resume(state, stop)
        ahead = [*range(stop, stop + 30), stop + 2000]
        assert [order[i] for i in ahead] == [whole[i] for i in ahead]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(cases, st.data())
def test_with_other_weights_every_source_goes_on_where_it_was(pairs, data):
    sizes, weights = zip(*pairs, strict=True)
    order = make(sizes, weights)
    drawn, begin = [[] for _ in sizes], 0

    def draw(stop):
        for i, source in zip(range(begin, stop), sources_of(order, sizes, stop - begin, begin), strict=True):
            drawn[source].append(order[i])

    for _ in range(3):
        stop = begin + data.draw(st.integers(0, 40))
        draw(stop)
        state = moved(order.state(stop))
        weights = data.draw(st.lists(st.integers(0, 5), min_size=len(sizes), max_size=len(sizes)).filter(any))
        order = make(sizes, weights)
        order.resume(state, stop)
        begin = stop
    draw(begin + 40)
    offset = 0
    for source, size in enumerate(sizes):
        single = make([1] * source + [size], [0] * source + [1])
        assert drawn[source] == [single[i] - source + offset for i in range(len(drawn[source]))]
        offset += size


def test_positions_before_a_change_of_weights_keep_their_samples_while_they_are_asked_for():
    first = make([30, 30], [1, 1])
    expected = [first[i] for i in range(20)]
    second = make([30, 30], [5, 1])
    second.resume(moved(first.state(20, oldest=12)), 20)
    third = make([30, 30], [1, 9])
    third.resume(moved(second.state(40, oldest=12)), 40)
    assert [third[i] for i in range(12, 20)] == expected[12:]
    assert [third[i] for i in range(20, 40)] == [second[i] for i in range(20, 40)]
    assert len(third.state(60)["legs"]) == 1, "what nobody asks for any more is not kept"


def test_sources_are_found_by_name_wherever_they_stand_in_the_list():
    first = make([20, 30], [1, 2])
    expected = [first[i] for i in range(100)]
    turned = make([30, 20], [2, 1], names="ba")
    turned.resume(moved(first.state(33)), 33)
    assert [(turned[i] - 30) % 50 for i in range(33, 100)] == expected[33:]


def test_a_source_that_is_new_begins_and_the_others_go_on():
    first = make([20, 30], [1, 1])
    more = make([20, 30, 10], [1, 1, 1])
    more.resume(moved(first.state(11)), 11)
    drawn = [more[i] for i in range(11, 100)]
    assert sorted([each for each in drawn if each >= 50][:10]) == [*range(50, 60)]
    old = [each for each in drawn if each < 20]
    before = [first[i] for i in range(11) if first[i] < 20]
    alone = make([20])
    assert before + old == [alone[i] for i in range(len(before + old))]


def test_a_source_that_is_gone_or_has_other_samples_is_refused_and_a_single_one_may_be_renamed():
    state = moved(make([20, 30]).state(5))
    with pytest.raises(
        DataError, match=r"source 'b' is in the saved state, but not in this run, which has a, c; .*weight 0"
    ):
        make([20, 30], names="ac").resume(state, 5)
    with pytest.raises(DataError, match="dataset 'b': samples is 30 in the saved state and 31"):
        make([20, 31]).resume(state, 5)
    first, renamed = make([20]), make([20], names="z")
    renamed.resume(moved(first.state(7)), 7)
    assert [renamed[i] for i in range(7, 60)] == [first[i] for i in range(7, 60)]


def test_a_state_is_a_few_hundred_bytes():
    order = make([10**9, 10**8, 10**7, 10**6], [0.4, 0.3, 0.2, 0.1])
    order.resume(moved(order.state(10**10)), 10**10)
    assert len(json.dumps(order.state(10**12))) < 400
    assert order[10**12] < sum([10**9, 10**8, 10**7, 10**6])


def test_blocks_are_shuffled_so_that_few_are_read_at_a_time():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 60, 40)
    order, samples = BlockShuffle(blocks, seed=3), int(blocks.sum())
    block_of = np.repeat(np.arange(40), blocks)
    passes = [[order[p * samples + i] for i in range(samples)] for p in range(2)]
    for each in passes:
        assert sorted(each) == [*range(samples)]
    assert passes[0] != passes[1]
    # With the latest eight blocks in memory nearly every block is read once.
    held, reads = [], 0
    for index in passes[0]:
        block = block_of[index]
        reads += block not in held
        held = [block, *[each for each in held if each != block]][:8]
    assert reads <= 42
    assert abs(np.corrcoef(np.arange(samples), passes[0])[0, 1]) < 0.5


def test_a_source_with_blocks_goes_on_as_any_other():
    blocks = [np.asarray([7, 5, 9, 4, 6, 7, 2, 8, 3, 9]), None]
    whole, again = (make([60, 11], [2, 1], blocks=blocks) for _ in range(2))
    again.resume(moved(whole.state(41)), 41)
    assert [again[i] for i in range(41, 300)] == [whole[i] for i in range(41, 300)]


def test_a_source_whose_rows_stand_in_other_row_groups_is_refused():
    def grouped(*blocks, shuffle=True):
        return make([40], blocks=[np.asarray(blocks)], shuffle=shuffle)

    state = grouped(10, 10, 10, 10).state(20)
    grouped(10, 10, 10, 10).resume(state, 20)
    for other in (grouped(8, 8, 8, 8, 8), make([40])):
        with pytest.raises(DataError, match="other row groups"):
            other.resume(state, 20)
    old = {"samples": 40, "shuffle": True, "seed": 0, "seen": 20, "bad": 0}
    with pytest.raises(DataError, match="other row groups"):
        grouped(20, 20).resume(grouped(20, 20).upgraded(old), 20)
    # Without a shuffle their order is that of the file.
    plain = grouped(10, 10, 10, 10, shuffle=False).state(20)
    grouped(8, 8, 8, 8, 8, shuffle=False).resume(plain, 20)
