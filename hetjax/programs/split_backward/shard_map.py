"""Run and split the equation of a `jax.shard_map`: into two, of which the second reads what each device made."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from hetjax.programs.split_backward.equations import Equations, Values, new_number, scoped, split


class ShardValue(NamedTuple):
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
        scope: the scopes that it was traced in.
    """

    body: Equations
    inputs: tuple[ShardValue, ...]
    outputs: tuple[ShardValue, ...]
    mesh: Mesh | AbstractMesh
    axes: tuple[str, ...]
    scope: str

    @property
    def reads(self) -> tuple[int, ...]:
        """Numbers of the inputs outside."""
        return tuple(value.outer for value in self.inputs)

    @property
    def makes(self) -> tuple[int, ...]:
        """Numbers of the outputs outside."""
        return tuple(value.outer for value in self.outputs)

    def run(self, values: Values) -> None:
        """Trace a `shard_map` over the body."""
        own = PartitionSpec(self.axes)

        def part(*arrays):
            inside = {
                value.inner: array[0] if value.spec is None else array
                for value, array in zip(self.inputs, arrays, strict=True)
            }
            self.body.run(inside)
            return tuple(
                inside[value.inner][None] if value.spec is None else inside[value.inner] for value in self.outputs
            )

        mapped = jax.shard_map(
            part,
            mesh=self.mesh,
            in_specs=tuple(own if value.spec is None else value.spec for value in self.inputs),
            out_specs=tuple(own if value.spec is None else value.spec for value in self.outputs),
            axis_names=frozenset(self.axes),
            check_vma=False,
        )
        with scoped(self.scope):
            made = mapped(*(values[number] for number in self.reads))
        values.update(zip(self.makes, made, strict=True))

    def trimmed(self, made: set[int]) -> ShardMap:
        """Return it with those outputs alone that are asked for."""
        if made.issuperset(self.makes):
            return self
        outputs = tuple(value for value in self.outputs if value.outer in made)
        return self._narrowed(self.body.only(value.inner for value in outputs), outputs)

    def split(self, now: set[int], then: set[int]) -> tuple[ShardMap, ShardMap | None]:
        """Return two of them; the second reads what each device kept in the first."""
        outputs = [value for value in self.outputs if value.outer in now]
        first = [value.inner for value in outputs]
        known = self.body.needs(first)
        # What the first one makes anyway comes out of it directly.
        outputs += [value for value in self.outputs if value.outer in then and value.inner in known]
        rest = tuple(value for value in self.outputs if value.outer in then and value.inner not in known)
        head_body, tail_body, handed_on = split(self.body, first, [value.inner for value in rest])
        kept = tuple(ShardValue(new_number(), inner, None) for inner in handed_on)
        head = self._narrowed(head_body, (*outputs, *kept))
        if not rest:
            return head, None
        tail = self._narrowed(tail_body, rest)
        return head, dataclasses.replace(tail, inputs=(*tail.inputs, *kept))

    def _narrowed(self, body: Equations, outputs: tuple[ShardValue, ...]) -> ShardMap:
        """Return the same over a part of the body."""
        needed = body.needs(value.inner for value in outputs)
        inputs = tuple(value for value in self.inputs if value.inner in needed)
        return dataclasses.replace(self, body=body, inputs=inputs, outputs=outputs)
