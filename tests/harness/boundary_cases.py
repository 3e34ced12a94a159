"""Crossings drawn at random, and what they must give, worked out element by element on the host."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Choose = Callable[[Sequence], object]
AXES = ("x", "y", "z")
MESHES = {1: [(1,)], 2: [(2,), (1, 2)], 3: [(3,)], 4: [(4,), (2, 2)], 5: [(5,)], 6: [(6,), (2, 3), (3, 2)], 7: [(7,)]}
MESHES[8] = [(8,), (4, 2), (2, 2, 2)]
DTYPES = ("float32", "bfloat16", "int8", "bool")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """A mesh of devices, by their place among all, and for each dim the axes it is split over."""

    devices: tuple[int, ...]
    sizes: tuple[int, ...]
    spec: tuple[tuple[str, ...], ...]

    @property
    def sharding(self) -> NamedSharding:
        grid = np.array([jax.devices()[i] for i in self.devices]).reshape(self.sizes)
        mesh = Mesh(grid, AXES[: len(self.sizes)], axis_types=(AxisType.Auto,) * len(self.sizes))
        return NamedSharding(mesh, PartitionSpec(*(axes or None for axes in self.spec)))

    @property
    def counts(self) -> list[int]:
        sizes = dict(zip(AXES, self.sizes, strict=False))
        return [math.prod(sizes[axis] for axis in axes) for axes in self.spec]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crossing:
    """What goes from where to where."""

    source: Side
    destination: Side
    shape: tuple[int, ...]
    dtype: str


def draw_crossing(choose: Choose, device_count: int = 8, places: Sequence[str] | None = None) -> Crossing:
    """`choose` picks one of a sequence: by hypothesis, or by a seed that several processes share."""
    everywhere = list(range(device_count))
    place = choose(places or ["disjoint", "disjoint", "same", "permuted", "overlapping"])
    order = _shuffled(choose, everywhere)
    count = choose([n for n in MESHES if n <= device_count - (place == "disjoint")])
    here = order[:count] if choose([True, False]) else sorted(order[:count])
    if place == "disjoint":
        rest = order[count:]
        there = rest[: choose([n for n in MESHES if n <= len(rest)])]
    elif place == "overlapping":
        there = _shuffled(choose, everywhere)[: choose([n for n in MESHES if n <= device_count])]
    else:
        there = here if place == "same" else _shuffled(choose, here)
    ndim = choose([0, 1, 2, 2, 3])
    source, destination = (_draw_side(choose, devices, ndim) for devices in (here, there))
    # Often no free axis divides what is left of a dim: 1, or 5.
    shape = tuple(
        math.lcm(a, b) * choose([1, 1, 2, 3, 5]) for a, b in zip(source.counts, destination.counts, strict=True)
    )
    return Crossing(source=source, destination=destination, shape=shape, dtype=choose(DTYPES))


def _shuffled(choose: Choose, items: Sequence[int]) -> list[int]:
    left, order = list(items), []
    while left:
        order.append(left.pop(choose(range(len(left)))))
    return order


def _draw_side(choose: Choose, devices: Sequence[int], ndim: int) -> Side:
    sizes = choose(MESHES[len(devices)])
    spec: list[list[str]] = [[] for _ in range(ndim)]
    for i in _shuffled(choose, range(len(sizes))):
        dim = choose([*range(ndim), None])
        if dim is not None:
            spec[dim].append(AXES[i])
    return Side(devices=tuple(devices), sizes=sizes, spec=tuple(map(tuple, spec)))


@st.composite
def crossings(draw, places: tuple[str, ...] | None = None) -> Crossing:
    """Any crossing within eight devices."""
    return draw_crossing(lambda options: draw(st.sampled_from(options)), places=places)


def any_bits(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Every pattern of bits may come: signed zeros, infinities, signalling NaNs with any payload."""
    random = np.random.default_rng(seed)
    if dtype == "bool":
        return np.asarray(random.integers(2, size=shape) == 1)
    numpy_type = np.dtype(jnp.dtype(dtype))
    data = random.integers(256, size=(*shape, numpy_type.itemsize), dtype=np.uint8)
    value = data.view(numpy_type).reshape(shape)
    if shape and numpy_type.kind != "i":
        specials = np.array([-0.0, np.nan, -np.inf], numpy_type)
        flat = value.reshape(-1)
        flat[: len(specials)] = specials[: flat.size]
    return value


def on_devices(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """The array with each device's part, in one process or in several."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index], dtype=value.dtype)


def assert_shards_equal(array: jax.Array, value: np.ndarray, sharding: NamedSharding) -> None:
    """Each device of this process holds its own part of the value, bit for bit."""
    assert array.sharding.is_equivalent_to(sharding, value.ndim)
    assert array.dtype == value.dtype
    wanted = sharding.addressable_devices_indices_map(value.shape)
    assert {shard.device for shard in array.addressable_shards} == set(wanted)
    for shard in array.addressable_shards:
        got, expected = np.asarray(shard.data), np.ascontiguousarray(value[wanted[shard.device]])
        assert got.shape == value[wanted[shard.device]].shape
        assert got.tobytes() == expected.tobytes(), f"{shard.device} holds other bits"


def elements_held(sharding: NamedSharding, shape: tuple[int, ...]) -> dict[int, np.ndarray]:
    """For each device a mask of the elements that it holds, as JAX says."""
    masks = {}
    for device, index in sharding.devices_indices_map(shape).items():
        masks[device.id] = np.zeros(shape, bool)
        masks[device.id][index] = True
    return masks


def elements_lacking(crossing: Crossing) -> int:
    """Elements that devices are to hold and do not, counted one by one."""
    held = elements_held(crossing.source.sharding, crossing.shape)
    wanted = elements_held(crossing.destination.sharding, crossing.shape)
    nothing = np.zeros(crossing.shape, bool)
    return sum(int((mask & ~held.get(device, nothing)).sum()) for device, mask in wanted.items())
