"""hetjax bench boundary: a transport by plan, timed against two other ways."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from rich.progress import Progress

from hetjax.boundary import Transport
from hetjax.boundary.plan import PlanHop
from hetjax.boundary.tiling import Tiling
from hetjax.errors import ConfigError
from hetjax.tools.bench.leader_transport import LeaderTransport
from hetjax.tools.bench.problem import enough_devices
from hetjax.tools.boundary_cost import busiest_device_bytes
from hetjax.tools.boundary_sides import parse_side
from hetjax.tools.leader_plan import leader_hops
from hetjax.tools.outcome import Json, Outcome, stderr
from hetjax.tools.pictures import output_path
from hetjax.tools.tables import NumberTable

#: The three ways, as they are called in tables and pictures.
HEADINGS = {"hetjax": "hetjax", "device_put": "jax.device_put", "leader": "leader and broadcast"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two sides, as `hetjax boundary` reads them."""

    name: str
    source: str
    destination: str


PAIRS = (
    Pair(name="fan-in", source="data=4@0-3:batch", destination="data=2,tensor=2@4-7:batch"),
    Pair(name="equal, replicas", source="data=2,tensor=2@0-3:batch", destination="data=2,tensor=2@4-7:batch"),
    Pair(name="fan-out", source="data=2@0-1:batch", destination="data=2,tensor=3@2-7:batch"),
    Pair(name="rows to columns", source="data=4@0-3:batch", destination="tensor=4@4-7:,,tensor"),
    Pair(name="3 to 4", source="data=3@0-2:batch", destination="data=4@3-6:batch"),
    Pair(name="shared, data to tensor", source="data=8@0-7:batch", destination="data=4,tensor=2@0-7:batch"),
    Pair(name="shared, batch to seq", source="data=8@0-7:batch", destination="context=8@0-7:,seq"),
    Pair(name="overlapping", source="data=4@0-3:batch", destination="data=4@4,5,2,3:batch"),
)
DEVICES = 8
# Batch and sequence divide by every degree above; the last dim makes up the size.
BATCH, SEQ, WIDTH_STEP = 24, 64, 8


def bench_boundary(*, size: float = 16.0, repeats: int = 20, warmup: int = 3, out: str | None = None) -> Outcome:
    """Time the crossing of a tensor in three ways: by plan, by jax.device_put of it whole, by leader and broadcast.

    All three must give equal arrays; they take turns, so that whatever else runs on the machine slows all alike.

    Args:
        size: MiB of the float32 tensor that crosses.
        repeats: Crossings that are timed in each way, of each pair of shardings.
        warmup: Crossings before those.
        out: Bar chart to draw as well, e.g. boundary.png (or .svg, .pdf).
    """
    if size <= 0 or repeats < 1 or warmup < 1:
        raise ConfigError(f"size is {size}, repeats {repeats} and warmup {warmup}; give more than 0 of each")
    path = None if out is None else output_path(out)
    devices = enough_devices(DEVICES)[:DEVICES]
    cases = []
    with Progress(console=stderr(), disable=not stderr().is_terminal) as progress:
        task = progress.add_task("boundaries", total=len(PAIRS))
        for pair in PAIRS:
            cases.append(_Case(pair, shape_of(size), devices).time(warmup, repeats))
            progress.advance(task)
    numbers = {
        "shape": list(shape_of(size)),
        "dtype": "float32",
        "repeats": repeats,
        "device_kind": devices[0].device_kind,
        "cases": cases,
        "out": out,
    }
    if path is not None:
        from hetjax.tools.bench.bars import draw_bars  # only here: matplotlib takes a while to import

        draw_bars(numbers, HEADINGS, path)
    return Outcome(numbers=numbers, shown=(_table(numbers), *([f"wrote {out}"] if out else [])))


def shape_of(size: float) -> tuple[int, int, int]:
    """Return a shape of about so many MiB in float32, divisible by every degree of `PAIRS`."""
    width = size * 2**20 / (4 * BATCH * SEQ)
    return BATCH, SEQ, max(1, round(width / WIDTH_STEP)) * WIDTH_STEP


def sharding_of(tiling: Tiling, devices: Sequence[jax.Device]) -> NamedSharding:
    """Return the sharding that a tiling means, its numbers counting `devices`."""
    mesh = np.empty(len(tiling.devices), object)
    mesh[:] = [devices[number] for number in tiling.devices]
    names, sizes = zip(*tiling.axes, strict=True)
    return NamedSharding(Mesh(mesh.reshape(sizes), names), tiling.partition_spec)


class _Case:
    """One pair of shardings, with a tensor on the source and the three ways compiled."""

    def __init__(self, pair: Pair, shape: tuple[int, ...], devices: Sequence[jax.Device]):
        self.pair = pair
        source, destination = (parse_side(text).tiling(shape) for text in (pair.source, pair.destination))
        self.destination = sharding_of(destination, devices)
        start = sharding_of(source, devices)
        self.value = np.random.default_rng(0).standard_normal(shape, np.float32)
        self.x = jax.device_put(self.value, start)
        self.transport = Transport(start, self.destination, shape, jnp.float32).compile()
        self.leader = leader_hops(shape, 4, source, destination)
        self.ways: dict[str, Callable[[jax.Array], jax.Array]] = {
            "hetjax": self.transport,
            "device_put": lambda x: jax.device_put(x, self.destination),
            "leader": LeaderTransport(start, self.destination, shape),
        }

    def time(self, warmup: int, repeats: int) -> dict[str, Json]:
        """Time each way: its median seconds, and its bytes between devices."""
        for name, run in self.ways.items():
            _check_equal(run(self.x), self.value, self.destination, f"{name} of {self.pair.name}")
        seconds: dict[str, list[float]] = {name: [] for name in self.ways}
        for index in range(warmup + repeats):
            for name, run in self.ways.items():
                start = time.perf_counter()
                jax.block_until_ready(run(self.x))
                if index >= warmup:
                    seconds[name].append(time.perf_counter() - start)
        plan = self.transport.plan
        return {
            "name": self.pair.name,
            "from": self.pair.source,
            "to": self.pair.destination,
            "way": self.transport.way,
            "lower_bound": plan.lower_bound,
            "hetjax": {"seconds": median(seconds["hetjax"]), **_bytes(plan.hops)},
            # JAX does not report what its device_put moves.
            "device_put": {"seconds": median(seconds["device_put"])},
            "leader": {"seconds": median(seconds["leader"]), **_bytes(self.leader)},
        }


def _check_equal(arrived: jax.Array, value: np.ndarray, sharding: NamedSharding, what: str) -> None:
    """Raise AssertionError where it is not the same array in the sharding asked for: then it is not the same work."""
    if not arrived.sharding.is_equivalent_to(sharding, value.ndim):
        raise AssertionError(f"{what}: arrived as {arrived.sharding}, not as {sharding}")
    for shard in arrived.addressable_shards:
        np.testing.assert_array_equal(shard.data, value[shard.index], err_msg=what)


def _bytes(hops: Sequence[PlanHop]) -> dict[str, int]:
    """Sum the bytes between the sides (or shared devices), of the busiest device, and inside the destination."""
    across = [hop for hop in hops if hop.where != "destination"]
    return {
        "bytes_moved": sum(hop.bytes for hop in across),
        "bytes_per_device_max": max(map(busiest_device_bytes, across), default=0),
        "bytes_inside_destination": sum(hop.bytes for hop in hops if hop.where == "destination"),
    }


def _table(numbers: Mapping[str, Json]) -> NumberTable:
    shape = ",".join(map(str, numbers["shape"]))
    rows = []
    for case in numbers["cases"]:
        times = (f"{1000 * case[name]['seconds']:.2f}" for name in HEADINGS)
        busiest = (f"{case[name]['bytes_per_device_max'] / 2**20:.2f}" for name in ("hetjax", "leader"))
        rows.append((case["name"], *times, *busiest))
    return NumberTable(
        title=(
            f"float32[{shape}] on {numbers['device_kind']}: median ms of {numbers['repeats']}, "
            "and MiB that the busiest device sends or receives between the sides"
        ),
        texts=("boundary",),
        numbers=("hetjax", "device_put", "leader", "MiB\nhetjax", "MiB\nleader"),
        rows=rows,
    )
