"""Batches that are made while a step runs."""

import threading

import numpy as np
import pytest

from hetjax.data import BatchesAhead, TrainData
from hetjax.errors import DataError
from tests.harness.sample_loaders import make_loader


@pytest.fixture
def loader(make_dataset, make_config):
    return make_loader(make_config(make_dataset(10), epochs=2))


def tokens(batch):
    return batch.arrays["llm"]["tokens"]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_and_states_are_those_of_the_stream(loader, workers):
    plain, ahead = TrainData(loader), BatchesAhead(TrainData(loader), workers=workers)
    assert ahead.get_state() == plain.get_state()
    count = 0
    for want, got in zip(plain, ahead, strict=True):
        np.testing.assert_array_equal(tokens(got), tokens(want))
        assert ahead.get_state() == plain.get_state()
        count += 1
    assert count == 5
    plain.close(), ahead.close()


def test_a_stream_goes_on_from_the_state_of_the_batch_that_was_taken_not_of_the_one_made_ahead(loader):
    first = BatchesAhead(TrainData(loader), workers=2)
    next(first)
    state, second = first.get_state(), tokens(next(first))
    first.set_state(state)
    np.testing.assert_array_equal(tokens(next(first)), second)
    other = BatchesAhead(TrainData(loader), workers=2)
    other.set_state(state)
    np.testing.assert_array_equal(tokens(next(other)), second)
    first.close(), other.close()


class Stream:
    """Stands in for `TrainData`: its third batch is an error once; notes which batch is being made."""

    def __init__(self):
        self.made, self.failed, self.third = 0, False, threading.Event()

    def __next__(self):
        if self.made == 2:
            self.third.set()
            if not self.failed:
                self.failed = True
                raise DataError("the third")
        self.made += 1
        return self.made

    def get_state(self):
        return {"seen": self.made}

    def close(self):
        pass


def test_a_batch_is_made_before_it_is_asked_for_and_its_error_comes_at_its_turn():
    stream = Stream()
    ahead = BatchesAhead(stream, workers=1)
    assert next(ahead) == 1 and next(ahead) == 2
    assert stream.third.wait(30)
    assert ahead.get_state() == {"seen": 2}
    with pytest.raises(DataError, match="the third"):
        next(ahead)
    assert ahead.get_state() == {"seen": 2}
    assert next(ahead) == 3  # asked again, the stream tries again
    ahead.close()


def test_without_workers_nothing_is_made_before_it_is_asked_for():
    stream = Stream()
    ahead = BatchesAhead(stream, workers=0)
    assert next(ahead) == 1 and stream.made == 1
    ahead.close()
