"""What `jax.make_jaxpr` returned, taken apart.

Names are those of `jax.extend.core`. Beyond them this file alone knows of parameters of primitives, which JAX
does not promise to keep: those of "scan" (told in two ways by the versions of JAX that are supported) and of
"shard_map", and which calls only group equations. One that is not known so is left as one equation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from hetjax.programs.split_backward.equations import Equation, Equations, Step, Values, new_number
from hetjax.programs.split_backward.scan import Loop
from hetjax.programs.split_backward.shard_map import Mapped

# What `jax.checkpoint` guards against, merging with the work of the forward, cannot happen in another program.
_GROUPS = ("jit", "pjit", "remat2", "remat", "checkpoint")


def equations_of(traced: ClosedJaxpr) -> tuple[Equations, tuple[int, ...], tuple[int, ...]]:
    """(equations, numbers of the inputs, numbers of the outputs)."""
    steps: list[Step] = []
    constants: Values = {}
    inputs = tuple(new_number() for _ in _open(traced)[0].invars)
    outputs = _add(traced, inputs, steps, constants)
    return Equations(tuple(steps), constants), inputs, tuple(outputs)


def _add(traced: Any, inputs: Sequence[int], steps: list[Step], constants: Values) -> list[int]:
    """Append the equations of a function called with `inputs`; the numbers of what it returns."""
    jaxpr, arrays = _open(traced)
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def number(atom: Any) -> int:
        if not isinstance(atom, Literal):
            return known[atom]
        fixed = new_number()
        constants[fixed] = np.asarray(atom.val, atom.aval.dtype)
        return fixed

    for variable, array in zip(jaxpr.constvars, arrays, strict=True):
        known[variable] = new_number()
        constants[known[variable]] = array
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _GROUPS:
            made = _add(eqn.params["jaxpr"], [number(atom) for atom in eqn.invars], steps, constants)
        else:
            made = [new_number() for _ in eqn.outvars]
            with_body = _WITH_BODY.get(eqn.primitive.name)
            if with_body is not None and with_body.applies(eqn):
                steps.append(with_body.read(eqn, [number(atom) for atom in eqn.invars], made))
            else:
                steps.append(_equation(eqn, known, made))
        known.update(zip(eqn.outvars, made, strict=True))
    return [number(atom) for atom in jaxpr.outvars]


def _equation(eqn: JaxprEqn, known: dict[Any, int], made: Sequence[int]) -> Equation:
    variables = tuple(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))
    # A result that nothing reads is bound to a variable that stands for none.
    kept = [i for i, variable in enumerate(eqn.outvars) if type(variable).__name__ != "DropVar"]
    return Equation(
        eqn,
        variables,
        tuple(eqn.outvars[i] for i in kept),
        tuple(known[variable] for variable in variables),
        tuple(made[i] for i in kept),
    )


class _Scan:
    @staticmethod
    def applies(eqn: JaxprEqn) -> bool:
        return True

    @staticmethod
    def read(eqn: JaxprEqn, reads: list[int], makes: list[int]) -> Loop:
        body, inputs, outputs = equations_of(eqn.params["jaxpr"])
        fixed, carried = _counts(eqn)
        end = fixed + carried
        return Loop(
            body=body,
            constants=tuple(zip(reads[:fixed], inputs[:fixed], strict=True)),
            carries=tuple(zip(reads[fixed:end], inputs[fixed:end], outputs[:carried], makes[:carried], strict=True)),
            each=tuple(zip(reads[end:], inputs[end:], strict=True)),
            stacked=tuple(zip(outputs[carried:], makes[carried:], strict=True)),
            length=eqn.params["length"],
            reverse=eqn.params["reverse"],
            unroll=eqn.params["unroll"],
        )


class _ShardMap:
    @staticmethod
    def applies(eqn: JaxprEqn) -> bool:
        """Where JAX tracks what varies over the mesh, values inside are of types that a cut would have to keep."""
        return not eqn.params["check_vma"]

    @staticmethod
    def read(eqn: JaxprEqn, reads: list[int], makes: list[int]) -> Mapped:
        body, inputs, outputs = equations_of(eqn.params["jaxpr"])
        mesh, manual = eqn.params["mesh"], eqn.params["newly_manual_axes"]
        return Mapped(
            body=body,
            inputs=tuple(zip(reads, inputs, eqn.params["in_specs"], strict=True)),
            outputs=tuple(zip(outputs, makes, eqn.params["out_specs"], strict=True)),
            mesh=mesh,
            axes=tuple(axis for axis in mesh.axis_names if axis in manual),
        )


_WITH_BODY = {"scan": _Scan, "shard_map": _ShardMap}


def _counts(eqn: JaxprEqn) -> tuple[int, int]:
    """How many inputs of a scan are constants, and how many are carried; jax 0.12 tells it by a tree."""
    if "ft_in" in eqn.params:
        constants, carries, _ = eqn.params["ft_in"].unpack()
        return len(constants), len(carries)
    return eqn.params["num_consts"], eqn.params["num_carry"]


def _open(traced: Any) -> tuple[Jaxpr, Sequence[Any]]:
    """A function's equations and the arrays of its own, whichever way the parameter of an equation holds them."""
    return getattr(traced, "jaxpr", traced), getattr(traced, "consts", ())
