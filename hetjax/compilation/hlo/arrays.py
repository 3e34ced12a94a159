"""The arrays that a compiled program makes in a device's memory, and those that are larger than they should be."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from hetjax.compilation.hlo.calls import CallCounts
from hetjax.compilation.hlo.layers import fused_computation, layer_of, op_name_of
from hetjax.compilation.hlo.program_text import Computation, Instruction, ProgramText
from hetjax.compilation.hlo.shapes import Shape

# Results of these are other instructions' arrays under a new name or shape, or what is inside of them is listed itself.
_VIEWS = (
    *("bitcast", "get-tuple-element", "parameter", "tuple", "while", "conditional", "call", "constant", "after-all"),
    *("optimization-barrier", "add-dependency", "domain", "partition-id", "replica-id"),
)
_IN_PLACE = "dynamic-update-slice"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MadeArrays:
    """All arrays of one dtype and shape that instructions of a program make on one device.

    Attributes:
        shape: dtype and dims.
        made_by: opcodes, targets of custom calls, or for fusions "fusion " and their last operation, with how many
            instructions there are of each, the most frequent first.
        op_names: the stacks of JAX names of these instructions, the most frequent first.
        times: how often one call of the program makes such an array; a loop of unknown length counts as one iteration.
        slices: of how many equal parts it is the stack, where the program fills it part by part; 1 elsewhere.
    """

    shape: Shape
    made_by: tuple[tuple[str, int], ...]
    op_names: tuple[str, ...]
    times: int
    slices: int

    @property
    def bytes(self) -> int:
        """Size of one of them."""
        return self.shape.bytes

    @property
    def is_workspace(self) -> bool:
        """Whether it is scratch memory of a fixed size that a library asks for."""
        return self.shape.dtype in ("s8", "u8") and len(self.shape.dims) == 1 and self.made_by[0][0].startswith("__cu")

    @property
    def layer(self) -> str:
        """The named scopes in which most of them are made, as far as they have any."""
        return next(filter(None, map(layer_of, self.op_names)), "")


class _Maker(NamedTuple):
    """An instruction that makes an array, of which it fills one of so many slices."""

    computation: Computation
    instruction: Instruction
    slices: int


def largest_arrays(program: ProgramText) -> list[MadeArrays]:
    """Return the arrays that a program makes in memory, the largest first.

    Results inside of fusions never reach memory and are left out, as are views, arguments and what the host holds.
    What is updated in place counts where it is updated as well as where it is first made.
    """
    counts = CallCounts(program, loop_bound=1)
    makers: dict[Shape, list[_Maker]] = {}
    for name in counts.materialized():
        computation = program.computations[name]
        for instruction in computation.instructions:
            for shape, slices in _made(program, computation, instruction):
                makers.setdefault(shape, []).append(_Maker(computation, instruction, slices))
    largest = sorted(makers, key=lambda shape: (-shape.bytes, str(shape)))
    return [_gathered(program, counts, shape, makers[shape]) for shape in largest]


def oversized(
    arrays: Iterable[MadeArrays],
    *,
    weight_bytes: int,
    activation_bytes: int,
    sequence_lengths: Collection[int],
    known: Iterable[Shape] = (),
) -> list[tuple[MadeArrays, str]]:
    """Return the arrays that no program should make, each with the reason.

    None should be larger than four times the larger of the largest weight's shard and the widest activation, that is
    tokens of the device times the widest hidden width; of a stack that is filled part by part (a residual of each
    layer) that holds for the part. And none should have two dims of a sequence's length: it grows with the square.

    Args:
        arrays: as `largest_arrays` returns them.
        weight_bytes, activation_bytes: of these two.
        sequence_lengths: lengths of sequences, whole and as a device holds them.
        known: shapes of weights and activations. An array is not taken for scores, though a width may equal a
            sequence's length, where all its dims are dims of one of them, or its two unlike lengths are.
    """
    limit = 4 * max(weight_bytes, activation_bytes)
    all_known = [collections.Counter(shape.dims) for shape in known]
    found = []
    for array in arrays:
        if array.is_workspace:
            continue
        dims = collections.Counter(dim for dim in array.shape.dims if dim != 1)
        lengths = [dim for dim in array.shape.dims if dim in sequence_lengths]
        # One that is a width somewhere may be that here, whatever batch it comes with; a square must be small, too.
        pattern = dims if len(set(lengths)) == 1 else collections.Counter(lengths)
        if array.bytes > limit * array.slices:
            part = f" in {array.slices} parts" if array.slices > 1 else ""
            found.append((array, f"{array.bytes} bytes{part}, where {limit} is the most"))
        elif len(lengths) > 1 and not any(pattern <= one for one in all_known):
            found.append((array, f"two dims of a sequence's length: {lengths[0]} and {lengths[1]}"))
    return found


def _gathered(program: ProgramText, counts: CallCounts, shape: Shape, makers: list[_Maker]) -> MadeArrays:
    kinds = collections.Counter(_kind(program, each.instruction) for each in makers)
    op_names = collections.Counter(op_name_of(program, each.computation, each.instruction) for each in makers)
    return MadeArrays(
        shape=shape,
        made_by=tuple(kinds.most_common()),
        op_names=tuple(name for name, _ in op_names.most_common() if name),
        times=sum(counts(each.computation.name) for each in makers),
        slices=max(each.slices for each in makers),
    )


def _made(program: ProgramText, computation: Computation, instruction: Instruction) -> Iterator[tuple[Shape, int]]:
    """Yield the arrays that an instruction makes, each with the number of slices that it fills one of."""
    if instruction.opcode in _VIEWS or instruction.opcode.endswith(("-done", "-update")):
        return
    slices = _slices(program, computation, instruction)
    for index, shape in enumerate(instruction.results):
        if not shape.on_host:
            yield shape, slices[index] if index < len(slices) else 1


def _slices(program: ProgramText, computation: Computation, instruction: Instruction) -> list[int]:
    """Return for each array of a result how many times the slice fits into it that the instruction updates."""
    fused = fused_computation(program, instruction)
    if fused is None:
        return [_fitting(computation, instruction)]
    return [_fitting(fused, _seen_through(fused, root)) for root in _roots(fused)]


def _roots(fused: Computation) -> tuple[Instruction, ...]:
    """Return the instructions that give a fusion's results, one or several."""
    return fused.operands(fused.root) if fused.root.opcode == "tuple" else (fused.root,)


def _fitting(computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode != _IN_PLACE:
        return 1
    update = computation.by_name[instruction.operands[1]].shapes[0]
    return instruction.shapes[0].size // max(update.size, 1)


def _seen_through(computation: Computation, instruction: Instruction) -> Instruction:
    """Return what a view is a view of."""
    while instruction.opcode == "bitcast" and instruction.operands:
        instruction = computation.by_name[instruction.operands[0]]
    return instruction


def _kind(program: ProgramText, instruction: Instruction) -> str:
    if (fused := fused_computation(program, instruction)) is not None:
        opcodes = dict.fromkeys(_seen_through(fused, root).opcode for root in _roots(fused))
        return f"fusion {' + '.join(opcodes)}"
    return instruction.custom_call_target or instruction.opcode
