"""Convert floats to unsigned integers of the same bits, as which they cross a boundary, and back.

A backend may handle a narrow float in a wider one: XLA's CPU backend sends and joins bfloat16 as float32,
which is twice the bytes, and the way back does not keep a NaN's payload. Integers go as they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


def to_bits(x: jax.Array) -> jax.Array:
    """Return floats as unsigned integers of their width; anything else as it is."""
    if not _is_float_of_bytes(x.dtype):
        return x
    return jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize])


def from_bits(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Return the floats of these bits: the reverse of `to_bits` for an array that was of this dtype."""
    return jax.lax.bitcast_convert_type(x, dtype) if _is_float_of_bytes(dtype) else x


def _is_float_of_bytes(dtype: jnp.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits == 8 * dtype.itemsize
