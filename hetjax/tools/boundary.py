"""hetjax boundary: the hops of a tensor from one sharding to another, and what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax.numpy as jnp
from rich.console import RenderableType

from hetjax.boundary.plan import BoundaryPlan, PlanHop, make_plan
from hetjax.errors import ConfigError
from hetjax.meshes import Hardware, find_hardware, format_devices
from hetjax.meshes.hardware import HARDWARE
from hetjax.tools.boundary_cost import busiest_device_bytes, hop_seconds, plan_seconds
from hetjax.tools.boundary_sides import parse_side
from hetjax.tools.device_order import best_device_order
from hetjax.tools.leader_plan import leader_hops
from hetjax.tools.outcome import Json, Outcome
from hetjax.tools.pictures import output_path
from hetjax.tools.tables import NumberTable
from hetjax.training.display import format_bytes

MOST_PAIRS = 16  # pairs of devices that are listed one by one


def boundary(
    *,
    shape: str,
    from_: str,
    to: str,
    dtype: str = "bfloat16",
    hardware: str = "H100",
    devices_per_host: int | None = None,
    out: str | None = None,
) -> Outcome:
    """Show how a tensor crosses from one sharding to another: the hops, their bytes, and their predicted time.

    A side is written degrees@devices:dims, e.g. data=4,tensor=2@0-7:batch. Needs no devices.

    Args:
        shape: Sizes of the tensor's dims, e.g. 32,256,1024.
        from_: The sharding it comes from, e.g. data=4,tensor=2@0-7:batch.
        to: The sharding it goes to, e.g. data=2,context=2,tensor=2@8-15:batch,seq.
        dtype: Dtype of the tensor.
        hardware: What to predict times for: B200, H200, H100, A100, TPU v5 lite or TPU v5.
        devices_per_host: Devices that fast links join; null for the hardware's usual number.
        out: Picture of the hops to draw as well, e.g. plan.png (or .svg, .pdf).
    """
    sizes, itemsize = _shape(shape), _itemsize(dtype)
    machine = _hardware(hardware, devices_per_host)
    path = None if out is None else output_path(out)
    source, destination = (
        parse_side(text, name=name).tiling(sizes, name=name) for name, text in (("--from", from_), ("--to", to))
    )
    plan = make_plan(sizes, itemsize, source, destination)
    leader = leader_hops(sizes, itemsize, source, destination)
    if path is not None:
        from hetjax.tools.boundary_picture import draw_plan  # only here: matplotlib takes a while to import

        draw_plan(plan, path, title=f"{dtype}[{shape}]   {from_}  →\N{NO-BREAK SPACE}{to}", format_bytes=format_bytes)
    numbers = {
        "shape": list(sizes),
        "dtype": dtype,
        "from": from_,
        "to": to,
        "bytes_moved": plan.bytes_moved,
        "lower_bound": plan.lower_bound,
        "bytes_per_pair_max": plan.bytes_per_pair_max,
        "bytes_per_device_max": max(
            (busiest_device_bytes(hop) for hop in plan.hops if hop.where != "destination"), default=0
        ),
        "device_pairs": len(plan.bytes_per_pair),
        "bytes_gathered": plan.bytes_gathered,
        "hops": [_hop_numbers(hop, machine) for hop in plan.hops],
        "leader_and_broadcast": {
            "bytes_moved": leader[0].bytes,
            "bytes_per_device_max": busiest_device_bytes(leader[0]),
            "bytes_gathered": sum(hop.bytes for hop in leader[1:]),
            "hops": [_hop_numbers(hop, machine) for hop in leader],
        },
        "hardware": machine.name,
        "devices_per_host": machine.devices_per_host,
        "predicted_seconds": {
            "plan": plan_seconds(plan.hops, machine),
            "leader_and_broadcast": plan_seconds(leader, machine),
        },
        "better_device_order": _better_order(plan),
        "out": out,
    }
    return Outcome(numbers=numbers, shown=tuple(_shown(numbers, plan, machine)))


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def _shape(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.strip("()[] ").split(",")]
    words = [word for word in words if word]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"--shape '{text}' is no shape; write the sizes of its dims, e.g. 32,256,1024")
    return tuple(map(int, words))


def _itemsize(dtype: str) -> int:
    try:
        return jnp.dtype(dtype).itemsize
    except TypeError:
        raise ConfigError(f"--dtype '{dtype}' is unknown; write e.g. bfloat16, float32 or int8") from None


def _hardware(name: str, devices_per_host: int | None) -> Hardware:
    found = find_hardware(name)
    if found is None:
        known = ", ".join(entry.name for entry in HARDWARE)
        raise ConfigError(f"--hardware '{name}' is unknown; there are figures of {known}")
    if devices_per_host is None:
        return found
    if devices_per_host < 1:
        raise ConfigError(f"--devices_per_host is {devices_per_host}; give 1 or more")
    return dataclasses.replace(found, devices_per_host=devices_per_host)


# ── finding ──────────────────────────────────────────────────────────────────────────────────────


def _hop_numbers(hop: PlanHop, machine: Hardware) -> dict[str, Json]:
    busiest = max(hop.bytes_per_pair.items(), key=lambda pair: pair[1], default=None)
    return {
        "name": hop.name,
        "where": hop.where,
        "bytes": hop.bytes,
        "device_pairs": len(hop.bytes_per_pair),
        "busiest": busiest and {"from": busiest[0][0], "to": busiest[0][1], "bytes": busiest[1]},
        "predicted_seconds": hop_seconds(hop, machine),
        "bytes_per_pair": [[sender, receiver, nbytes] for (sender, receiver), nbytes in hop.bytes_per_pair.items()],
    }


def _better_order(plan: BoundaryPlan) -> dict[str, Json] | None:
    """Return the order of the destination's devices that moves the least, where it moves less than the present one."""
    if plan.disjoint:
        return None
    order = best_device_order(plan.shape, plan.itemsize, plan.source, plan.destination)
    destination = dataclasses.replace(plan.destination, devices=order)
    moved = make_plan(plan.shape, plan.itemsize, plan.source, destination).bytes_moved
    return {"devices": format_devices(order), "bytes_moved": moved} if moved < plan.bytes_moved else None


# ── showing ──────────────────────────────────────────────────────────────────────────────────────


def _shown(numbers: Mapping[str, Json], plan: BoundaryPlan, machine: Hardware) -> Iterator[RenderableType]:
    title = f"{numbers['dtype']}[{','.join(map(str, numbers['shape']))}]   {numbers['from']} → {numbers['to']}"
    yield _hops_table(plan.hops, machine, title)
    if not plan.hops:
        yield "nothing to do: every device has its part already"
    pairs = plan.bytes_per_pair.items()
    if 0 < len(pairs) <= MOST_PAIRS:
        yield "device pairs  " + "   ".join(
            f"{sender}→{receiver} {format_bytes(nbytes)}" for (sender, receiver), nbytes in pairs
        )
    for key in ("bytes_moved", "lower_bound", "bytes_per_pair_max"):
        yield f"{key:<19}{numbers[key]:>16,}  ({format_bytes(numbers[key])})"
    yield f"{'device_pairs':<19}{numbers['device_pairs']:>16,}"
    if better := numbers["better_device_order"]:
        yield (
            f"another order of the destination's devices moves {format_bytes(better['bytes_moved'])} in place of "
            f'{format_bytes(numbers["bytes_moved"])}; write  devices: "{better["devices"]}"'
        )
    yield _times_table(numbers)


def _hops_table(hops: Sequence[PlanHop], machine: Hardware, title: str) -> NumberTable:
    rows = []
    for hop in hops:
        busiest = "sends nothing"
        if hop.bytes_per_pair:
            (sender, receiver), nbytes = max(hop.bytes_per_pair.items(), key=lambda pair: pair[1])
            busiest = f"{sender}→{receiver} {format_bytes(nbytes)}"
        seconds = _time(hop_seconds(hop, machine))
        rows.append((hop.name, hop.where, format_bytes(hop.bytes), str(len(hop.bytes_per_pair)), busiest, seconds))
    headings = ("bytes", "device pairs", "busiest pair", "predicted")
    return NumberTable(title=title, texts=("hop", "where"), numbers=headings, rows=rows)


def _times_table(numbers: Mapping[str, Json]) -> NumberTable:
    other, seconds = numbers["leader_and_broadcast"], numbers["predicted_seconds"]
    rows = []
    for name, key, found in (("this plan", "plan", numbers), ("leader and broadcast", "leader_and_broadcast", other)):
        sizes = (format_bytes(found[size]) for size in ("bytes_moved", "bytes_per_device_max", "bytes_gathered"))
        rows.append((name, *sizes, _time(seconds[key])))
    return NumberTable(
        title=f"predicted on {numbers['hardware']}, {numbers['devices_per_host']} devices a host",
        texts=("",),
        numbers=("bytes moved", "busiest device", "then inside", "time"),
        rows=rows,
    )


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f} µs"
