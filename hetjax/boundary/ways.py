"""The ways in which a boundary's plan can run, and which of them the devices allow.

`jax.device_put` of a whole sharded array reads it to the host whenever a destination shard is not
also a shard of the source, and across processes it asks for equal partitions. So a plan runs in one
of these ways:

- "stay": every device has its part already; the array gets its new sharding.
- "reshard": one program over devices that both meshes list alike, by XLA's partitioner, where the
  compiled program sends no more than the plan says.
- "copies": in one process, `jax.device_put` of single-device pieces, each of them a whole array.
- "exchange": one program over the devices of both meshes, in any number of processes.
- "device_put": across hosts, where the backend can and each device sends all it has to one other. Only on request.
"""

from __future__ import annotations

from typing import Literal, get_args

from jax.sharding import NamedSharding

from hetjax.boundary.plan import BoundaryPlan
from hetjax.errors import BoundaryError

Way = Literal["stay", "reshard", "copies", "exchange", "device_put"]


def check_way(way: Way, plan: BoundaryPlan, source: NamedSharding, destination: NamedSharding) -> None:
    """Raise BoundaryError for a way that is unknown, or that these devices do not allow."""
    if way not in get_args(Way):
        raise BoundaryError(f"way={way!r} is unknown; the ways are {', '.join(get_args(Way))}, or None to choose")
    able = {
        "stay": (plan.stays, "a device does not hold its part yet"),
        "reshard": (_same_devices(plan), "the meshes do not list the same devices in the same order"),
        "copies": (_in_one_process(source, destination), "the devices are in several processes"),
        "device_put": (_pieces_match(plan), "a device sends to several, or receives from several"),
        "exchange": (True, ""),
    }
    fits, reason = able[way]
    if not fits:
        raise BoundaryError(f"way='{way}' cannot carry {source} to {destination}: {reason}; leave it out")


def default_way(plan: BoundaryPlan, source: NamedSharding, destination: NamedSharding) -> Way:
    """Return the way to take; for "reshard", if the partitioner's program then sends no more than planned."""
    if plan.stays:
        return "stay"
    if _same_devices(plan) and plan.source.in_order and plan.destination.in_order:
        return "reshard"
    shared = set(plan.source.devices) == set(plan.destination.devices)
    return "exchange" if shared or not _in_one_process(source, destination) else "copies"


def _same_devices(plan: BoundaryPlan) -> bool:
    return plan.source.devices == plan.destination.devices


def _in_one_process(source: NamedSharding, destination: NamedSharding) -> bool:
    return len({device.process_index for side in (source, destination) for device in side.mesh.devices.flat}) == 1


def _pieces_match(plan: BoundaryPlan) -> bool:
    """Whether the device at each place of one mesh sends its whole tile to the one at that place of the other."""
    fine, other = plan.source_fine, plan.destination_fine
    return (
        plan.disjoint
        and not plan.broadcast_axes
        and fine.counts == other.counts
        and list(fine.tile_of.values()) == list(other.tile_of.values())
    )
