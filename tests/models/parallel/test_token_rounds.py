"""Rounds in which tokens travel: whatever is asked for, no round needs more room than it has."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetjax.models.parallel.token_rounds import Rooms, rooms


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=60), st.integers(4, 30), st.integers(4, 12))
def test_no_round_has_more_slots_than_room(slots, first, further):
    room = Rooms(first=first, further=further, most=4)
    turns = np.asarray(room.round_of(jnp.asarray(np.cumsum(slots) - slots)))
    assert turns[0] == 0 and (np.diff(turns) >= 0).all()
    filled = np.bincount(turns, weights=slots)
    assert filled[0] <= first and (filled[1:] <= further).all()


def test_an_even_load_has_room_in_the_first_round():
    """Of 20 draws of independent choices none needs another round, with a margin of nothing but chance."""
    random = np.random.default_rng(0)
    for usual in (8_000, 98_304):
        room = rooms(usual, 100 * usual, 6, margin=1.0)
        assert (random.poisson(usual, 20) <= room.first - 5).all()
        assert room.first < 1.05 * usual and room.further == room.first // 4


@pytest.mark.parametrize(
    ("usual", "worst", "devices"),
    [(30_000, 36_000, 1), (10, 1_000, 1), (10, 200, 4)],
    ids=["the margin holds all", "few slots", "few slots of all queues"],
)
def test_where_all_that_may_come_has_room_there_is_one_round(usual, worst, devices):
    room = rooms(usual, worst, 4, margin=1.25, devices=devices)
    assert (room.first, room.further) == (worst, 0)
    assert not np.asarray(room.round_of(jnp.arange(worst))).any()
