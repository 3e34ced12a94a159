"""The items of a checkpoint: a module's arrays as trees that Orbax writes and reads.

A process writes and reads the shards that its own devices hold. Orbax gives each process a database of
its own inside the item, and `merge` makes them one; nothing else ties the processes together here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from hetjax.checkpoint.layer_slices import HeldRuns
from hetjax.state.module_arrays import Runs


class _NotOrbax(logging.Filter):
    """Drops Orbax's running commentary; what fails there is raised as CheckpointError, with its cause."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts


logging.getLogger("absl").addFilter(_NotOrbax())


def item_trees(module: str, arrays: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A module's arrays by kind and path, or their shapes, as the trees of its items; Orbax writes no empty ones."""
    trees = {kind: unflatten_dict(flat, sep="/") for kind, flat in arrays.items() if flat}
    opt_state = trees.pop("opt_state", {})
    return {item: tree for item, tree in ((f"{module}.weights", trees), (f"{module}.opt_state", opt_state)) if tree}


def item_arrays(trees: Mapping[str, Any], module: str, kind: str) -> dict[str, Any]:
    """The reverse of `item_trees`, for one kind: arrays by path."""
    tree = (
        trees.get(f"{module}.opt_state", {})
        if kind == "opt_state"
        else trees.get(f"{module}.weights", {}).get(kind, {})
    )
    return flatten_dict(tree, sep="/")


def place_in_item(module: str, kind: str, path: str) -> tuple[str, str]:
    """(the item that holds an array, what it is called there)."""
    if kind == "opt_state":
        return f"{module}.opt_state", path.replace("/", ".")
    return f"{module}.weights", f"{kind}.{path.replace('/', '.')}"


class Item:
    """One item of a checkpoint that is being written.

    Args:
        folder: where it goes; the folder around it exists.
        processes: those that write parts of it, the same in all of them.
    """

    def __init__(self, folder: Path, processes: Collection[int]):
        self._folder = folder
        # Each process makes the database entries of what it writes; the shape of the tree comes from one.
        arrays = _HeldArrays(
            primary_host=None,
            use_replica_parallel=False,
            # One file for all arrays, which several processes cannot write.
            enable_write_sharding_file=len(processes) == 1,
        )
        self._handler = ocp.PyTreeCheckpointHandler(
            type_handler_registry=ocp.type_handlers.create_type_handler_registry((_Held, arrays), (HeldRuns, arrays)),
            multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=min(processes)),
        )

    def copy(self, tree: Any) -> Sequence[ocp.Future]:
        """Copy this process's shards of a tree of arrays to the host, and begin to write them."""
        held = jax.tree.map(lambda array: (HeldRuns if isinstance(array, Runs) else _Held)(array), tree)
        return asyncio.run(self._handler.async_save(self._folder, args=ocp.args.PyTreeSave(held))) or []

    def merge(self) -> None:
        """Make one database of those that the processes have written. Raises ValueError when an array is missing."""
        self._handler.finalize(self._folder)


def read_item(folder: Path, avals: Any) -> Any:
    """The arrays of an item, for a tree of shapes with shardings; the tree may leave out some of them."""
    handler = ocp.PyTreeCheckpointHandler()
    arguments = ocp.args.PyTreeRestore(
        avals, restore_args=ocp.checkpoint_utils.construct_restore_args(avals), partial_restore=True
    )
    return handler.restore(folder, args=arguments)


class _Held:
    """A stand-in for an array which Orbax takes as it is.

    Of a `jax.Array` it refuses one whose devices all belong to one of several processes; here that is
    an array of a stage that one process runs.
    """

    def __init__(self, array: jax.Array):
        self._array = array

    def __getattr__(self, name: str) -> Any:
        return getattr(self._array, name)


class _HeldArrays(ocp.type_handlers.ArrayHandler):
    """Writes arrays of which this process may hold no shard at all, as those of a stage in other processes."""

    async def serialize(self, values, infos, args=None):
        args = args or [ocp.SaveArgs()] * len(values)
        held = [row for row in zip(values, infos, args, strict=True) if row[0].addressable_shards]
        return await super().serialize(*map(list, zip(*held, strict=True))) if held else []
