"""Interpolate learned positions of a square grid for images whose patch grids have other sizes.

`places` says where each patch lies: (row, column, height and width of its image's patch grid). So images
of several sizes share one sequence, and which ones they are is data, not shapes.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# B batch · N patches · S side of the learned grid · D width

Shares = list[tuple[Int[Array, "B N"], Float[Array, "B N"]]]
"""Two positions on an axis of the grid, and the share of each."""


def cropped_positions(grid: Float[Array, "S*S D"], places: Int[Array, "B N 4"]) -> Float[Array, "B N D"]:
    """Return positions of a grid resized to m x m, m the longer side of a patch's image, at the patch's row and column.

    That is C-RADIO's cropped position embedding outside of training. Bilinear without antialiasing: of each axis the
    two nearest learned positions count. Interpolated in float32 at least, in the dtype of the grid. Prefix tokens and
    padding, whose places are negative, get some finite position.
    """
    side = _side(grid)
    wide = jnp.promote_types(grid.dtype, jnp.float32)
    row, column, height, width = jnp.moveaxis(places, -1, 0)
    size = jnp.maximum(jnp.maximum(height, width), 1)
    rows, columns = (_nearest_two(place, size, side, wide) for place in (row, column))
    return _weighted(grid, rows, columns, side, wide)


def resized_positions(grid: Float[Array, "S*S D"], places: Int[Array, "B N 4"]) -> Float[Array, "B N D"]:
    """Return positions of a grid resized to the height and width of each patch's image, bilinear with antialiasing.

    Where an image has fewer patches than the grid has positions, a patch takes the weighted mean of all near it, as
    SigLIP 2 does (Tschannen et al. 2025). One product with the whole grid: meant for grids of some hundred positions.
    """
    side = _side(grid)
    wide = jnp.promote_types(grid.dtype, jnp.float32)
    row, column, height, width = jnp.moveaxis(places, -1, 0)
    of_rows, of_columns = _triangles(row, height, side, wide), _triangles(column, width, side, wide)
    weights = (of_rows[..., :, None] * of_columns[..., None, :]).reshape(*row.shape, side * side)
    return jnp.tensordot(weights, grid.astype(wide), axes=1).astype(grid.dtype)


def aligned_positions(grid: Float[Array, "S*S D"], places: Int[Array, "B N 4"]) -> Float[Array, "B N D"]:
    """Return positions of a grid resized to the height and width of each patch's image, bilinear, corners on corners.

    The first and the last patch of a line get the first and the last learned position, as in Qwen3-VL. Interpolated in
    float32 at least, in the dtype of the grid. Padding, whose places are negative, gets some finite position.
    """
    side = _side(grid)
    wide = jnp.promote_types(grid.dtype, jnp.float32)
    row, column, height, width = jnp.moveaxis(places, -1, 0)
    rows, columns = (
        _two_around(
            jnp.clip(place.astype(wide) * (side - 1) / jnp.maximum(size - 1, 1).astype(wide), 0, side - 1), side
        )
        for place, size in ((row, height), (column, width))
    )
    return _weighted(grid, rows, columns, side, wide)


def _side(grid: Float[Array, "S*S D"]) -> int:
    return round(grid.shape[0] ** 0.5)


def _centre(place: Int[Array, "B N"], size: Int[Array, "B N"], side: int, wide) -> Float[Array, "B N"]:
    """Where the middle of a patch of `size` lies on an axis of `side` positions, whose own middles are at j + 0.5."""
    return (place.astype(wide) + 0.5) * (jnp.asarray(side, wide) / size.astype(wide))


def _nearest_two(place, size, side: int, wide) -> Shares:
    """(position, its share) of the two; beyond the outermost both are the outermost."""
    return _two_around(jnp.clip(_centre(place, size, side, wide) - 0.5, 0, side - 1), side)


def _two_around(at: Float[Array, "B N"], side: int) -> Shares:
    """(position, its share) of the two on both sides of a place on an axis."""
    low = jnp.floor(at).astype(jnp.int32)
    share = at - low
    return [(low, 1 - share), (jnp.minimum(low + 1, side - 1), share)]


def _weighted(grid: Float[Array, "S*S D"], rows: Shares, columns: Shares, side: int, wide) -> Float[Array, "B N D"]:
    """The mean of the four positions around a place, by their shares on both axes."""
    total = 0
    for one, share in rows:
        for other, other_share in columns:
            total += grid[one * side + other].astype(wide) * (share * other_share)[..., None]
    return total.astype(grid.dtype)


def _triangles(place, size, side: int, wide) -> Float[Array, "B N S"]:
    """Shares of all positions of an axis: a triangle as wide as a patch, but no narrower than between two positions."""
    size = jnp.maximum(size, 1)
    centre = _centre(jnp.clip(place, 0, size - 1), size, side, wide)
    reach = jnp.maximum(side / size.astype(wide), 1)
    distance = jnp.abs(jnp.arange(side, dtype=wide) + 0.5 - centre[..., None])
    shares = jnp.maximum(1 - distance / reach[..., None], 0)
    return shares / shares.sum(axis=-1, keepdims=True)
