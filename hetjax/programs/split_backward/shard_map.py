"""A `jax.shard_map`, which is cut into two: what a device has made by then, it hands to itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import PartitionSpec

from hetjax.programs.split_backward.equations import Equations, Values, cut, new_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mapped:
    """A function that every device runs on its parts.

    Attributes:
        body: its equations, on the parts of one device.
        inputs: (number outside, number in the body, how it is split).
        outputs: (number in the body, number outside, how it is split).
        mesh, axes: the devices, and the axes of the mesh over which parts are told apart.

    Without a PartitionSpec a value is the device's own: outside it has a leading dim over all axes.
    """

    body: Equations
    inputs: tuple[tuple[int, int, PartitionSpec | None], ...]
    outputs: tuple[tuple[int, int, PartitionSpec | None], ...]
    mesh: Any
    axes: tuple[str, ...]

    @property
    def reads(self) -> tuple[int, ...]:
        return tuple(outer for outer, _, _ in self.inputs)

    @property
    def makes(self) -> tuple[int, ...]:
        return tuple(outer for _, outer, _ in self.outputs)

    def run(self, values: Values) -> None:
        own = PartitionSpec(self.axes)

        def part(*arrays):
            inside = {
                inner: array[0] if spec is None else array
                for (_, inner, spec), array in zip(self.inputs, arrays, strict=True)
            }
            self.body.run(inside)
            return tuple(inside[inner][None] if spec is None else inside[inner] for inner, _, spec in self.outputs)

        made = jax.shard_map(
            part,
            mesh=self.mesh,
            in_specs=tuple(own if spec is None else spec for _, _, spec in self.inputs),
            out_specs=tuple(own if spec is None else spec for _, _, spec in self.outputs),
            axis_names=frozenset(self.axes),
            check_vma=False,
        )(*(values[number] for number in self.reads))
        values.update(zip(self.makes, made, strict=True))

    def trimmed(self, made: set[int]) -> Mapped:
        if made.issuperset(self.makes):
            return self
        outputs = tuple(output for output in self.outputs if output[1] in made)
        return self._narrowed(self.body.only(output[0] for output in outputs), outputs)

    def cut(self, now: set[int], then: set[int]) -> tuple[Mapped, Mapped | None]:
        outputs = [output for output in self.outputs if output[1] in now]
        first = [inner for inner, _, _ in outputs]
        known = self.body.needs(first)
        outputs += [output for output in self.outputs if output[1] in then and output[0] in known]
        rest = tuple(output for output in self.outputs if output[1] in then and output[0] not in known)
        head_body, tail_body, handed_on = cut(self.body, first, [inner for inner, _, _ in rest])
        kept = [(inner, new_number()) for inner in handed_on]
        head = self._narrowed(head_body, (*outputs, *((inner, outer, None) for inner, outer in kept)))
        if not rest:
            return head, None
        tail = self._narrowed(tail_body, rest)
        return head, dataclasses.replace(tail, inputs=(*tail.inputs, *((outer, inner, None) for inner, outer in kept)))

    def _narrowed(self, body: Equations, outputs: tuple[tuple[int, int, PartitionSpec | None], ...]) -> Mapped:
        """The same over a part of the body."""
        needed = body.needs(inner for inner, _, _ in outputs)
        inputs = tuple(each for each in self.inputs if each[1] in needed)
        return dataclasses.replace(self, body=body, inputs=inputs, outputs=outputs)
