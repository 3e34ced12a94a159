"""A `jax.shard_map`, which is split into two: each device hands what it has made by then to itself."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from hetjax.programs.split_backward.equations import Equations, Values, new_number, split


class Port(NamedTuple):
    """A value that goes into the function of a device or comes out of it.

    Attributes:
        outer, inner: its number outside and in the body.
        spec: how it is split over devices; None for a value of the device's own, which outside has a leading dim over
            all axes.
    """

    outer: int
    inner: int
    spec: PartitionSpec | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardMap:
    """A function that every device runs on its parts.

    Attributes:
        body: its equations, on the parts of one device.
        inputs, outputs: what goes in and comes out.
        mesh, axes: the devices, and the axes of the mesh that arrays are split over.
    """

    body: Equations
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    mesh: Mesh | AbstractMesh
    axes: tuple[str, ...]

    @property
    def reads(self) -> tuple[int, ...]:
        """Numbers of the inputs outside."""
        return tuple(port.outer for port in self.inputs)

    @property
    def makes(self) -> tuple[int, ...]:
        """Numbers of the outputs outside."""
        return tuple(port.outer for port in self.outputs)

    def run(self, values: Values) -> None:
        """Trace a `shard_map` over the body."""
        own = PartitionSpec(self.axes)

        def part(*arrays):
            inside = {
                port.inner: array[0] if port.spec is None else array
                for port, array in zip(self.inputs, arrays, strict=True)
            }
            self.body.run(inside)
            return tuple(inside[port.inner][None] if port.spec is None else inside[port.inner] for port in self.outputs)

        made = jax.shard_map(
            part,
            mesh=self.mesh,
            in_specs=tuple(own if port.spec is None else port.spec for port in self.inputs),
            out_specs=tuple(own if port.spec is None else port.spec for port in self.outputs),
            axis_names=frozenset(self.axes),
            check_vma=False,
        )(*(values[number] for number in self.reads))
        values.update(zip(self.makes, made, strict=True))

    def trimmed(self, made: set[int]) -> ShardMap:
        """Return it with those outputs alone that are asked for."""
        if made.issuperset(self.makes):
            return self
        outputs = tuple(port for port in self.outputs if port.outer in made)
        return self._narrowed(self.body.only(port.inner for port in outputs), outputs)

    def split(self, now: set[int], then: set[int]) -> tuple[ShardMap, ShardMap | None]:
        """Return two of them; the second reads what each device kept in the first."""
        outputs = [port for port in self.outputs if port.outer in now]
        first = [port.inner for port in outputs]
        known = self.body.needs(first)
        # What the first one makes anyway comes out of it directly.
        outputs += [port for port in self.outputs if port.outer in then and port.inner in known]
        rest = tuple(port for port in self.outputs if port.outer in then and port.inner not in known)
        head_body, tail_body, handed_on = split(self.body, first, [port.inner for port in rest])
        kept = tuple(Port(new_number(), inner, None) for inner in handed_on)
        head = self._narrowed(head_body, (*outputs, *kept))
        if not rest:
            return head, None
        tail = self._narrowed(tail_body, rest)
        return head, dataclasses.replace(tail, inputs=(*tail.inputs, *kept))

    def _narrowed(self, body: Equations, outputs: tuple[Port, ...]) -> ShardMap:
        """Return the same over a part of the body."""
        needed = body.needs(port.inner for port in outputs)
        inputs = tuple(port for port in self.inputs if port.inner in needed)
        return dataclasses.replace(self, body=body, inputs=inputs, outputs=outputs)
