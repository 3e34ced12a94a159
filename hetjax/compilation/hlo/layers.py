"""The layer that an instruction belongs to: the named scopes of the JAX program under which it was traced."""

from __future__ import annotations

import re

from hetjax.compilation.hlo.program_text import Computation, Instruction, ProgramText

_FUNCTION = re.compile(r"p?jit\(.*\)$")
_TRANSFORMED = re.compile(r"\w+\((.*)\)$")
_STRUCTURE = re.compile(
    r"while|body|cond|branch_\d+_fun|closed_call|core_call|eval_jaxpr|shard_map|checkpoint|remat\d?|rematted_computation"
    r"|custom_[jv]vp_call|pjit"
)


def layer_of(op_name: str) -> str:
    """Return the named scopes in a stack of JAX names: "layer/mlp" of "jit(f)/jvp(layer)/while/body/mlp/dot_general".

    What is left out: functions that were jitted, the names of transformations, control flow, specifications of einsum,
    and the primitive. Flax NNX names a scope for each module inside of another, so that scopes are paths of layers.
    Empty where none is named.
    """
    scopes = []
    for part in _split(op_name)[:-1]:
        if _FUNCTION.fullmatch(part):
            continue
        while found := _TRANSFORMED.fullmatch(part):
            part = "" if _FUNCTION.fullmatch(part) else found[1]
        if part and "->" not in part and not _STRUCTURE.fullmatch(part):
            scopes.append(part)
    return "/".join(_said_once(scopes))


def _said_once(scopes: list[str]) -> list[str]:
    """Leave out a beginning that is said again: a backward's forward is traced inside of the layer that asks for it."""
    for length in range(len(scopes) // 2, 0, -1):
        if scopes[:length] == scopes[length : 2 * length]:
            return scopes[length:]
    return scopes


def op_name_of(program: ProgramText, computation: Computation, instruction: Instruction) -> str:
    """Return the stack of JAX names of an instruction, or where it has none, of what it was made from.

    That is the root of a fusion, or the last in it that has a name, or else the first operand.
    """
    seen: Instruction | None = instruction
    for _ in range(8):
        if seen is None:
            break
        if seen.op_name:
            return seen.op_name
        if (fused := fused_computation(program, seen)) is not None:
            named = (each.op_name for each in (fused.root, *reversed(fused.instructions)))
            if found := next(filter(None, named), ""):
                return found
        seen = computation.by_name.get(seen.operands[0]) if seen.operands else None
    return ""


def fused_computation(program: ProgramText, instruction: Instruction) -> Computation | None:
    """Return the computation that a fusion runs as one kernel; None for other instructions."""
    if instruction.opcode != "fusion":
        return None
    found = _CALLS.search(instruction.attributes)
    return program.computations.get(found[1]) if found else None


_CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")


def _split(op_name: str) -> list[str]:
    """Split at slashes outside of parentheses and brackets."""
    parts, depth = [""], 0
    for letter in op_name:
        depth += (letter in "([") - (letter in ")]")
        if letter == "/" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
