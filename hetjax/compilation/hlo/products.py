"""FLOPs of the matrix products that a device does in one call of a compiled program, loops counted."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping

from hetjax.compilation.hlo.calls import CallCounts
from hetjax.compilation.hlo.convolution import convolution_flops
from hetjax.compilation.hlo.custom_calls import CustomCall, custom_call_flops
from hetjax.compilation.hlo.layers import layer_of, op_name_of
from hetjax.compilation.hlo.program_text import Computation, Instruction, ProgramText
from hetjax.models.kernels.attention_scores import Packing

_CONTRACTED = re.compile(r"\blhs_contracting_dims=\{([\d,]*)\}")
_MULTIPLYING = ("dot", "scaled-dot", "ragged-dot", "convolution", "custom-call")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """An instruction that multiplies matrices.

    Attributes:
        kind: its opcode, or what a custom call calls.
        op_name: the stack of JAX names under which it was traced.
        dtype: of its first operand of floating-point numbers, as XLA names it; of its first, where there is none.
        flops: of one execution, two for each multiply and add; None for a custom call of which nothing is known.
        times: how often one call of the program executes it.
    """

    kind: str
    op_name: str
    dtype: str
    flops: int | None
    times: int

    @property
    def layer(self) -> str:
        """The named scopes under which it was traced."""
        return layer_of(self.op_name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Products:
    """All matrix products of a program.

    Attributes:
        known: those whose FLOPs are counted.
        unknown: custom calls that might multiply matrices, whose FLOPs are not known.
    """

    known: tuple[Product, ...]
    unknown: tuple[Product, ...]

    @property
    def flops(self) -> int:
        """FLOPs of a device in one call of the program, without the unknown calls."""
        return sum(each.flops * each.times for each in self.known)


def matrix_products(
    program: ProgramText,
    *,
    loop_bound: int | None = None,
    branch: Callable[..., str] = max,
    packing: Packing = (),
) -> Products:
    """Return the matrix products that a device does in one call.

    Products that XLA turned into sums of elementwise products (some of a vector) do not count, as no elementwise
    work does.

    Args:
        program: the compiled program.
        loop_bound: iterations of loops whose length the text does not say.
        branch: `max` counts the costliest branch of every conditional, `min` the cheapest.
        packing: the segments that are assumed where they divide the rows of attention; without, rows of one each.

    Raises ValueError for a loop with products whose length the text does not say, without a `loop_bound`.
    """
    found = {name: _multiplying(program, each, packing) for name, each in program.computations.items()}
    own = {name: sum(flops or 0 for _, flops in each) for name, each in found.items()}
    every = CallCounts(program, loop_bound=loop_bound)
    total = _totals(every, own, branch)
    chosen = CallCounts(program, loop_bound=loop_bound, branch=lambda names: (branch(names, key=total),))
    known, unknown = [], []
    for name, each in found.items():
        for instruction, flops in each:
            # What is not known cannot make a branch the costliest, so it is named wherever it stands.
            times = every(name) if flops is None else chosen(name) if flops else 0
            if times:
                (unknown if flops is None else known).append(
                    Product(
                        kind=instruction.custom_call_target or instruction.opcode,
                        op_name=op_name_of(program, program.computations[name], instruction),
                        dtype=_operand_dtype(program.computations[name], instruction),
                        flops=flops,
                        times=times,
                    )
                )
    return Products(known=tuple(known), unknown=tuple(unknown))


def _totals(counts: CallCounts, own: Mapping[str, int], branch: Callable[..., int]) -> Callable[[str], int]:
    """Return the FLOPs of a computation with all that it calls, by which branches are compared."""

    @functools.cache
    def total(name: str) -> int:
        flops, branches = own.get(name, 0), {}
        for call in counts.calls.get(name, ()):
            inside = total(call.callee)
            if call.is_branch:
                branches.setdefault(call.instruction.name, []).append(inside)
            elif inside:
                flops += inside * counts.iterations(call)
        return flops + sum(branch(each) for each in branches.values())

    return total


def _multiplying(
    program: ProgramText, computation: Computation, packing: Packing
) -> list[tuple[Instruction, int | None]]:
    """Return the instructions that may multiply, each with the FLOPs of one execution or None."""
    return [
        (instruction, _flops(program, computation, instruction, packing))
        for instruction in computation.instructions
        if instruction.opcode in _MULTIPLYING
    ]


def _flops(program: ProgramText, computation: Computation, instruction: Instruction, packing: Packing) -> int | None:
    operands = [each.shapes[0] for each in computation.operands(instruction) if each.shapes]
    match instruction.opcode:
        case "dot" | "scaled-dot":
            contracted = _CONTRACTED.search(instruction.attributes)
            dims = [int(dim) for dim in contracted[1].split(",") if dim] if contracted else []
            return 2 * instruction.shapes[0].size * math.prod(operands[0].dims[dim] for dim in dims)
        case "ragged-dot":
            # Every row of the left with each of the columns, once.
            return 2 * operands[0].size * operands[1].dims[-1]
        case "convolution":
            return convolution_flops(instruction.attributes, *operands[:2], instruction.shapes[0])
    return custom_call_flops(
        CustomCall(
            target=instruction.custom_call_target,
            op_name=instruction.op_name,
            functions=tuple(frame.function for frame in program.frames.stack(instruction.frame)),
            operands=tuple(operands),
            results=instruction.shapes,
            attributes=instruction.attributes,
            backend_config=instruction.backend_config,
            packing=packing,
        )
    )


def _operand_dtype(computation: Computation, instruction: Instruction) -> str:
    dtypes = [each.shapes[0].dtype for each in computation.operands(instruction) if each.shapes]
    return next((dtype for dtype in dtypes if dtype[0] in "bcf"), dtypes[0] if dtypes else "")
