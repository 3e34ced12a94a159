import jax.numpy as jnp

from hetjax.models.parts.segments import numbered, positions_in_segments

IDS = jnp.array([[4, 4, -1, 2, 2, 2, -1, -1], [7, 7, 7, 7, 7, 7, 7, 8]])


def test_neighbours_with_equal_ids_are_counted_from_one_on():
    assert numbered(IDS).tolist() == [[1, 1, 2, 3, 3, 3, 4, 4], [1, 1, 1, 1, 1, 1, 1, 2]]


def test_positions_start_from_zero_with_each_document():
    assert positions_in_segments(IDS).tolist() == [[0, 1, 0, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5, 6, 0]]
