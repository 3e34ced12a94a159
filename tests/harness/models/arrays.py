"""Put arrays into a module, by path."""

from __future__ import annotations

from collections.abc import Mapping

import jax
from flax import nnx


def with_arrays(module: nnx.Module, arrays: Mapping[str, jax.typing.ArrayLike | jax.ShapeDtypeStruct]) -> nnx.Module:
    """Return a module like `module`, with these arrays in the place of its own.

    Raises ValueError where paths or shapes are not those of the module.
    """
    definition, state = nnx.split(module)
    flat = {"/".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(state)}
    lacking, unknown = sorted(flat.keys() - arrays.keys()), sorted(arrays.keys() - flat.keys())
    if lacking or unknown:
        raise ValueError(f"{type(module).__name__}: lacks arrays for {lacking}; has no {unknown}")
    for path, (_, variable) in flat.items():
        if arrays[path].shape != variable.get_value().shape:
            raise ValueError(
                f"{type(module).__name__}: {path} has shape {variable.get_value().shape}, not {arrays[path].shape}"
            )
    new = nnx.from_flat_state([(path, variable.replace(arrays[name])) for name, (path, variable) in flat.items()])
    return nnx.merge(definition, new)
