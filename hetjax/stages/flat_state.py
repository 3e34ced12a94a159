"""Splits a module into flat dicts of arrays by path, so that programs, optimizers and checkpoints see plain arrays."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax
from flax import nnx
from jaxtyping import PyTree

from hetjax.errors import GraphError
from hetjax.models.lora import FROZEN

Arrays = dict[str, jax.Array]
"""Arrays by path, e.g. "layers/block/attention/query/kernel"; of inputs and outputs by port."""

Shapes = dict[str, jax.ShapeDtypeStruct]
"""Shapes and dtypes by path or port, with the sharding where it is known."""

Array = TypeVar("Array", jax.Array, jax.ShapeDtypeStruct)


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """The structure of a module, without its arrays.

    Attributes:
        definition: the NNX graph definition.
        treedef: tree structure of its state.
        paths: path of every array, in tree order.
        params: paths that train (`nnx.Param`); the others are buffers, e.g. running statistics.
        keys: paths of random keys, which travel as their plain data.
        dims: dim names of every path that has them.
        frozen: paths of `params` that say by their metadata that they do not train.
    """

    definition: nnx.GraphDef[nnx.Module]
    treedef: jax.tree_util.PyTreeDef
    paths: tuple[str, ...]
    params: frozenset[str]
    keys: frozenset[str]
    dims: dict[str, tuple[str | None, ...]]
    frozen: frozenset[str] = frozenset()

    def assemble(self, params: Arrays, buffers: Arrays) -> nnx.Module:
        """Return the module with these arrays in place."""
        arrays = {**params, **buffers, **{path: jax.random.wrap_key_data(buffers[path]) for path in self.keys}}
        return nnx.merge(self.definition, self.treedef.unflatten([arrays[path] for path in self.paths]))


def flatten_module(module: nnx.Module) -> tuple[Skeleton, Arrays, Arrays]:
    """Split a module, with arrays or with shapes alone, into (skeleton, params, buffers).

    Random keys become their plain data. Raises GraphError for a variable that does not hold one array.
    """
    definition, state = nnx.split(module)
    entries, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    leaves, treedef = jax.tree.flatten(state)
    paths = tuple("/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in entries)
    if len(paths) != len(leaves):
        raise GraphError(f"{type(module).__name__}: every nnx.Variable must hold exactly one array")
    params = frozenset(path for path, (_, leaf) in zip(paths, entries, strict=True) if isinstance(leaf, nnx.Param))
    dims = {
        path: tuple(leaf.get_metadata("out_sharding"))
        for path, (_, leaf) in zip(paths, entries, strict=True)
        if isinstance(leaf, nnx.Variable) and leaf.get_metadata().get("out_sharding")
    }
    frozen = frozenset(
        path
        for path, (_, leaf) in zip(paths, entries, strict=True)
        if path in params and leaf.get_metadata().get(FROZEN, False)
    )
    arrays = dict(zip(paths, leaves, strict=True))
    for path, leaf in arrays.items():
        if not hasattr(leaf, "dtype"):
            raise GraphError(f"{type(module).__name__}: {path} holds {leaf!r}; make it an array, jnp.asarray({leaf!r})")
    keys = frozenset(path for path, leaf in arrays.items() if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key))
    return (
        Skeleton(definition, treedef, paths, params, keys, dims, frozen),
        {path: arrays[path] for path in paths if path in params},
        {path: _plain_data(arrays[path], path in keys) for path in paths if path not in params},
    )


def by_path(tree: PyTree[Array]) -> dict[str, Array]:
    """Return the leaves of any tree by path, in tree order, e.g. "0/mu/layers/block/attention/query/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _plain_data(array: Array, is_key: bool) -> Array:
    if not is_key:
        return array
    if isinstance(array, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, array)
    return jax.random.key_data(array)
