"""A stream that loads some rows of each batch, as each of many processes does."""

import json
from itertools import chain

import numpy as np
import pytest

from hetjax.data import TrainData
from hetjax.errors import BatchError, DataError
from hetjax.stages.row_subset import RowSubset
from tests.harness.sample_loaders import make_loader

BATCH = 5


def stream(config, rows=None, state=None):
    data = TrainData(make_loader(config), rows)
    if state is not None:
        data.set_state(state)
    return data


def inputs(batch):
    return {f"{m}.{name}": array for m, arrays in batch.arrays.items() for name, array in arrays.items()}


def assert_rows_of(part, whole, rows):
    """`part` holds these rows of `whole`, and says of itself what the whole array is."""
    assert part.epoch == whole.epoch
    assert inputs(part).keys() == inputs(whole).keys()
    for name, array in inputs(whole).items():
        subset = inputs(part)[name]
        assert isinstance(subset, RowSubset)
        assert (subset.rows, subset.shape, subset.dtype) == (tuple(rows), array.shape, array.dtype)
        np.testing.assert_array_equal(subset.values, array[list(rows)], strict=True)


@pytest.fixture
def config(make_dataset, make_config):
    """13 samples, three of them bad, in 3 epochs: 7 batches, and four rows that are dropped."""
    path = make_dataset(12, truncated=[2, 7])
    path.write_text(path.read_text() + "{broken\n")
    return make_config(path, epochs=3, batch_size=BATCH, max_shift=1, max_bad_share=1.0)


@pytest.mark.parametrize("workers", [0, 3])
def test_some_rows_equal_those_rows_of_the_whole_batch(config, make_config, workers):
    config = make_config(config.train, epochs=3, batch_size=BATCH, max_shift=1, max_bad_share=1.0, workers=workers)
    whole = list(stream(config))
    assert len(whole) == 39 // BATCH
    random = np.random.default_rng(0)
    for _ in range(6):
        rows = np.flatnonzero(random.random(BATCH) < 0.5).tolist()
        parts = list(stream(config, rows))
        for part, batch in zip(parts, whole, strict=True):
            assert_rows_of(part, batch, rows)


def test_two_disjoint_subsets_give_the_whole_and_skip_what_the_whole_skips(config):
    one, other = (0, 3), (1, 2, 4)
    skipped = []
    for whole, *parts in zip(stream(config), stream(config, one), stream(config, other), strict=True):
        for name, array in inputs(whole).items():
            joined = np.empty_like(array)
            for part, rows in zip(parts, (one, other), strict=True):
                joined[list(rows)] = inputs(part)[name].values
            np.testing.assert_array_equal(joined, array)
        assert sorted(chain(*(part.bad for part in parts))) == sorted(whole.bad)
        skipped += whole.bad
    assert len(skipped) == 9, "the three bad samples once an epoch"


@pytest.mark.parametrize(
    ("before", "after"), [((1, 4), (1, 4)), ((1, 4), (0, 2, 3)), ((3,), None), (None, (2, 4)), ((), (0,))]
)
def test_a_state_of_any_rows_continues_with_any_other(config, before, after):
    whole = list(stream(config))
    for done in (0, 1, 4, 7):
        data = stream(config, before)
        for _ in range(done):
            next(data)
        state = json.loads(json.dumps(data.get_state()))
        assert state["seen"] == done * BATCH
        rest = list(stream(config, after, state))
        rows = range(BATCH) if after is None else after
        for part, batch in zip(rest, whole[done:], strict=True):
            for name, array in inputs(batch).items():
                got = inputs(part)[name]
                np.testing.assert_array_equal(got if after is None else got.values, array[list(rows)])


def test_a_state_comes_back_as_it_was_set_when_the_rows_are_the_same(config):
    for rows in ((0,), (1, 4), (0, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3, 4), None):
        data = stream(config, rows)
        for _ in data:
            state = data.get_state()
            assert stream(config, rows, state).get_state() == state


def test_all_rows_count_bad_samples_as_the_whole_batch_does_and_some_in_proportion(config):
    whole, complete, one = stream(config), stream(config, range(BATCH)), stream(config, (2,))
    for batch, _, part in zip(whole, complete, one, strict=True):
        assert complete.get_state() == whole.get_state()
        assert len(part.bad) <= len(batch.bad)
    assert one.get_state()["bad"] % BATCH == 0


def test_only_the_rows_asked_for_are_read_and_each_once(make_dataset, make_config, note_reads):
    config = make_config(make_dataset(20), batch_size=10, shuffle=False, epochs=2)
    read = note_reads(config.train)
    batches = list(stream(config, (1, 2, 7)))
    assert len(batches) == 4
    assert sorted(read) == sorted([1, 2, 7, 11, 12, 17] * 2)
    read.clear()
    list(stream(make_config(config.train, batch_size=10, epochs=3), range(10)))
    assert sorted(read) == sorted([*range(20)] * 3)


def test_reading_ahead_does_not_run_to_the_end_of_an_endless_stream(make_dataset, make_config, note_reads):
    config = make_config(make_dataset(8), batch_size=8, workers=2)
    read = note_reads(config.train)
    data = stream(config, (0, 5))
    for _ in range(3):
        next(data)
    data.close()
    assert 6 <= len(read) <= 6 + 2 * 2 + 4, "two batches ahead, and what is in the threads' hands"


def test_a_process_without_a_row_reads_nothing_and_counts_batches(config, note_reads):
    whole = list(stream(config))
    read = note_reads(config.train)
    batches = list(stream(config, ()))
    assert read == []
    for part, batch in zip(batches, whole, strict=True):
        assert_rows_of(part, batch, ())


def test_the_share_of_bad_samples_is_of_the_rows_loaded_here(make_dataset, make_config):
    path = make_dataset(12, truncated=[1, 7])
    config = make_config(path, batch_size=6, shuffle=False, epochs=1, max_bad_share=0.1)
    assert [len(batch.bad) for batch in stream(config, (0, 2))] == [0, 0]
    with pytest.raises(DataError, match="2 of the 4 samples"):
        list(stream(config, (0, 1)))


@pytest.mark.parametrize("rows", [(1, 0), (2, 2), (-1, 0), (0, 5)])
def test_rows_that_are_none_of_a_batch_are_refused(config, rows):
    with pytest.raises(BatchError, match="rows must ascend from 0 to at most 4"):
        stream(config, rows)
