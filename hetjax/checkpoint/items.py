"""Writes and reads the items of a checkpoint with Orbax: a module's arrays as trees.

A process writes and reads the shards that its own devices hold. Orbax gives each process a database of
its own inside the item, and `merge` makes them one; the processes do nothing else together.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from hetjax.checkpoint.layer_slices import HeldSlices
from hetjax.state.module_state import Kind
from hetjax.state.whole_array import LayerSlices

Leaf = TypeVar("Leaf")

Tree: TypeAlias = Mapping[str, "Tree[Leaf] | Leaf"]
"""Leaves in dicts inside of dicts, by the parts of their paths."""

ITEM_TYPES_FILE = "_CHECKPOINT_METADATA"
"""Where Orbax looks for the types of a checkpoint's items."""

Saved: TypeAlias = jax.Array | LayerSlices
"""A leaf that an item is written from; this process may hold a part of it, or nothing."""


class _NotOrbax(logging.Filter):
    """Drops the log records of Orbax; its failures are raised as CheckpointError, with their cause."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts


logging.getLogger("absl").addFilter(_NotOrbax())


class ArrayPlace(NamedTuple):
    """The item that holds an array, and the array's name in it."""

    item: str
    name: str


def place_in_item(module: str, kind: Kind, path: str) -> ArrayPlace:
    """Return where a checkpoint keeps an array of a module."""
    if kind == "opt_state":
        return ArrayPlace(f"{module}.opt_state", path.replace("/", "."))
    return ArrayPlace(f"{module}.weights", f"{kind}.{path.replace('/', '.')}")


def item_trees(module: str, arrays: Mapping[Kind, Mapping[str, Leaf]]) -> dict[str, Tree[Leaf]]:
    """Return a module's arrays by kind and path, or their shapes, as the trees of its items, by item.

    Orbax writes no empty items, so an empty tree is left out.
    """
    trees = {kind: unflatten_dict(flat, sep="/") for kind, flat in arrays.items() if flat}
    opt_state = trees.pop("opt_state", {})
    return {item: tree for item, tree in ((f"{module}.weights", trees), (f"{module}.opt_state", opt_state)) if tree}


def item_arrays(trees: Mapping[str, Tree[Leaf]], module: str, kind: Kind) -> dict[str, Leaf]:
    """Return the arrays of one kind by path, from the trees that `item_trees` makes."""
    tree = (
        trees.get(f"{module}.opt_state", {})
        if kind == "opt_state"
        else trees.get(f"{module}.weights", {}).get(kind, {})
    )
    return flatten_dict(tree, sep="/")


def item_types(items: Iterable[str]) -> str:
    """Return the content of `ITEM_TYPES_FILE`, by which Orbax knows what reads each item of a checkpoint."""
    arrays, now = ocp.PyTreeCheckpointHandler.typestr(), time.time_ns()
    content = {
        "item_handlers": {**dict.fromkeys(items, arrays), "description": ocp.JsonCheckpointHandler.typestr()},
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": now,
        "commit_timestamp_nsecs": now,
        "custom_metadata": {},
    }
    return json.dumps(content)


class Item:
    """One item of a checkpoint that is being written.

    Args:
        folder: where it goes; the folder around it exists.
        processes: those that write parts of it, the same in all of them.
    """

    def __init__(self, folder: Path, processes: Collection[int]):
        self._folder = folder
        # Each process makes the database entries of what it writes; the shape of the tree comes from one.
        arrays = _HeldArrayHandler(
            primary_host=None,
            use_replica_parallel=False,
            # One file for all arrays, which several processes cannot write.
            enable_write_sharding_file=len(processes) == 1,
        )
        self._handler = ocp.PyTreeCheckpointHandler(
            type_handler_registry=ocp.type_handlers.create_type_handler_registry(
                (_HeldArray, arrays), (HeldSlices, arrays)
            ),
            multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=min(processes)),
        )

    def copy(self, tree: Tree[Saved]) -> Sequence[ocp.Future]:
        """Copy this process's shards of a tree of arrays to the host, and begin to write them."""
        held = jax.tree.map(lambda array: (HeldSlices if isinstance(array, LayerSlices) else _HeldArray)(array), tree)
        return asyncio.run(self._handler.async_save(self._folder, args=ocp.args.PyTreeSave(held))) or []

    def merge(self) -> None:
        """Make one database of those that the processes have written. Raises ValueError when an array is missing."""
        self._handler.finalize(self._folder)


def read_item(folder: Path, avals: Tree[jax.ShapeDtypeStruct]) -> Tree[jax.Array]:
    """Read the arrays of an item, for a tree of shapes with shardings; the tree may leave out some of them."""
    handler = ocp.PyTreeCheckpointHandler()
    arguments = ocp.args.PyTreeRestore(
        avals, restore_args=ocp.checkpoint_utils.construct_restore_args(avals), partial_restore=True
    )
    return handler.restore(folder, args=arguments)


class _HeldArray:
    """A stand-in for an array which Orbax takes as it is.

    Orbax refuses a `jax.Array` whose devices all belong to one of several processes, such as an array of a stage that
    one process runs.
    """

    def __init__(self, array: jax.Array):
        self._array = array

    def __getattr__(self, name: str) -> object:
        return getattr(self._array, name)


class _HeldArrayHandler(ocp.type_handlers.ArrayHandler):
    """Writes arrays of which this process may hold no shard at all, as those of a stage in other processes."""

    async def serialize(self, values, infos, args=None):
        args = args or [ocp.SaveArgs()] * len(values)
        held = [entry for entry in zip(values, infos, args, strict=True) if entry[0].addressable_shards]
        return await super().serialize(*map(list, zip(*held, strict=True))) if held else []
