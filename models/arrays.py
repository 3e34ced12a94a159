"""Read a module's arrays by path."""

from __future__ import annotations

import jax
from flax import nnx


def arrays_by_path(module: nnx.Module) -> dict[str, jax.Array | jax.ShapeDtypeStruct]:
    """Return every array of a module, or its shape where the module is abstract: {"layers/block/.../kernel": array}."""
    return {"/".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(module))}
