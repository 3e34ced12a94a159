from functools import partial

import jax
import numpy as np
import pytest

from hetjax.models.parts.position_grid import cropped_positions, resized_positions

SIDE, WIDTH = 6, 5
GRIDS = [(6, 6), (4, 6), (3, 2), (1, 1), (13, 7), (2, 12)]


resize = jax.jit(partial(jax.image.resize, method="linear"), static_argnums=1, static_argnames="antialias")


@pytest.fixture
def grid():
    return np.random.default_rng(0).normal(size=(SIDE * SIDE, WIDTH))


def places(height, width):
    rows, columns = np.divmod(np.arange(height * width), width)
    return np.stack([rows, columns, np.full_like(rows, height), np.full_like(rows, width)], axis=-1)


def all_at_once():
    """Places of all grids in one row, and padding."""
    return np.concatenate([places(*each) for each in GRIDS] + [np.full((3, 4), -1000)])[None].astype(np.int32)


def each(positions):
    ends = np.cumsum([height * width for height, width in GRIDS])
    return np.split(np.asarray(positions[0]), ends)


def test_cropped_positions_equal_a_square_resized_and_cropped(float64, grid):
    got = each(jax.jit(cropped_positions)(grid, all_at_once()))
    square = grid.reshape(SIDE, SIDE, WIDTH)
    for part, (height, width) in zip(got, GRIDS, strict=False):
        longest = max(height, width)
        want = resize(square, (longest, longest, WIDTH), antialias=False)[:height, :width]
        np.testing.assert_allclose(part, want.reshape(-1, WIDTH), rtol=1e-10, atol=1e-12)
    assert np.isfinite(got[-1]).all()


def test_resized_positions_equal_antialiased_resizing(float64, grid):
    got = each(jax.jit(resized_positions)(grid, all_at_once()))
    square = grid.reshape(SIDE, SIDE, WIDTH)
    for part, (height, width) in zip(got, GRIDS, strict=False):
        want = resize(square, (height, width, WIDTH), antialias=True)
        np.testing.assert_allclose(part, want.reshape(-1, WIDTH), rtol=1e-10, atol=1e-12)
    assert np.isfinite(got[-1]).all()


@pytest.mark.parametrize("resample", [cropped_positions, resized_positions])
def test_positions_of_the_grid_itself_are_exact_in_16_bits(resample, grid):
    half = jax.numpy.asarray(grid, "bfloat16")
    got = resample(half, places(SIDE, SIDE)[None].astype(np.int32))
    assert got.dtype == half.dtype
    np.testing.assert_array_equal(got[0], half)
