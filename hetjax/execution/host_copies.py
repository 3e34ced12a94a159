"""Moves parts of a stage between the memory of its devices and that of their hosts; never waits.

JAX copies behind the programs that make an array, and keeps the memory of a deleted array until its last reader is
through. So an array may be deleted as soon as its copy is dispatched.
"""

from __future__ import annotations

import functools
from typing import TypeVar

import jax

from hetjax.errors import ConfigError
from hetjax.execution.in_flight import StageInFlight
from hetjax.meshes import is_described, local_devices
from hetjax.schedule.actions import Action, Kind, Part
from hetjax.stages.stage import Stage

Tree = TypeVar("Tree")

_HOST_KINDS = ("pinned_host", "unpinned_host")
"""Names that JAX has for the memory of the host, the better one first: devices read pinned memory without the CPU."""


@functools.cache
def host_memory_kind(device: jax.Device) -> str:
    """Return JAX's name of the host memory that a device can read; of a described device that of its kind.

    Raises ConfigError for a device that can read none.
    """
    if is_described(device):
        return _HOST_KINDS[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    found = [kind for kind in _HOST_KINDS if kind in kinds and kind != device.default_memory().kind]
    if not found:
        raise ConfigError(
            f"offload needs memory of the host that devices can read ({' or '.join(_HOST_KINDS)}), but {device} has "
            f"{', '.join(kinds) or 'none'} alone; leave offload out"
        )
    return found[0]


def copy_part(stage: Stage, flight: StageInFlight, action: Action) -> list[jax.Array]:
    """Dispatch an OFFLOAD or a RELOAD of a part of a stage, and free the memory that it leaves; returns the copies.

    Of a state that is kept (`flight.keeps_state`) nothing moves, as its memory would not be freed.
    """
    out, before = action.kind is Kind.OFFLOAD, []
    # Weights that programs take in another dtype or sharding are arrays of their own, beside the master weights.
    apart = stage.cast_params.keys() if stage.trains else set()
    match action.part:
        case Part.RESIDUALS:
            moved = _copied(flight.residuals[action.microbatch], stage, out)
            flight.residuals[action.microbatch] = moved
        case Part.WEIGHTS:
            weights = {path: x for path, x in flight.compute.items() if path in apart or not flight.keeps_state}
            before = [x for path, x in weights.items() if path not in apart]
            moved = _copied(weights, stage, out)
            flight.compute = {**flight.compute, **moved}
            flight.params = {path: x if path in apart else moved.get(path, x) for path, x in flight.params.items()}
        case Part.OPTIMIZER if flight.keeps_state:
            moved = ()
        case Part.OPTIMIZER:
            own = {path: x for path, x in flight.params.items() if path in apart}, flight.opt_state
            before = jax.tree.leaves(own)
            moved = _copied(own, stage, out)
            flight.params, flight.opt_state = {**flight.params, **moved[0]}, moved[1]
    # Whoever called the step still holds the state that it consumes.
    for array in before:
        array.delete()
    return jax.tree.leaves(moved)


def _copied(tree: Tree, stage: Stage, out: bool) -> Tree:
    """Return copies of all arrays of a tree in the other memory, with the same shardings."""
    device = local_devices(stage.mesh.devices.flat)[0]
    kind = host_memory_kind(device) if out else device.default_memory().kind
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(jax.device_put(leaves, [leaf.sharding.with_memory_kind(kind) for leaf in leaves]))
