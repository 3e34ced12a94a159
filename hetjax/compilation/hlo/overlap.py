"""Whether a device computes while a collective is under way, as the scheduled text of its program says."""

from __future__ import annotations

from hetjax.compilation.hlo.calls import CallCounts
from hetjax.compilation.hlo.program_text import Computation, Instruction, ProgramText

_SYNCHRONOUS = '"is_sync":true'
_COMPUTING = (
    *("fusion", "custom-call", "dot", "scaled-dot", "ragged-dot", "convolution", "while", "conditional", "call"),
    *("reduce", "scatter", "gather", "sort", "transpose", "reduce-window", "select-and-scatter", "fft", "cholesky"),
    *("triangular-solve", "add", "multiply", "convert", "select"),
)


def overlapping(program: ProgramText, counts: CallCounts, computation: Computation, instruction: Instruction) -> bool:
    """Return whether something is computed between the start of a collective and its end.

    That takes a start and an end of its own, not to be marked as synchronous, and between the two, in the order in
    which they are dispatched, an instruction that computes more than single numbers. A collective in a computation
    that an `async-start` runs is under way from there on.
    """
    if instruction.opcode.endswith("-start"):
        return _computes_until_done(computation, instruction)
    return any(
        call.instruction.opcode == "async-start"
        and _computes_until_done(program.computations[call.caller], call.instruction)
        for call in counts.callers(computation.name)
    )


def _computes_until_done(computation: Computation, start: Instruction) -> bool:
    if _SYNCHRONOUS in start.backend_config:
        return False
    under_way, computes = {start.name}, False
    place = computation.places[start.name]
    for instruction in computation.instructions[place + 1 :]:
        if not under_way.isdisjoint(instruction.operands):
            if instruction.opcode.endswith("-done"):
                return computes
            if instruction.opcode.endswith("-update"):
                under_way.add(instruction.name)
        computes = computes or _computes(instruction)
    return False


def _computes(instruction: Instruction) -> bool:
    return instruction.opcode in _COMPUTING and any(shape.size > 1 for shape in instruction.shapes)
