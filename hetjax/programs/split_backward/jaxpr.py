"""Reads what `jax.make_jaxpr` returned into numbered equations.

Names are those of `jax.extend.core`. Beyond them this file alone knows of parameters of primitives, which JAX
does not promise to keep: those of "scan" (stored in two ways by the versions of JAX that are supported) and of
"shard_map", and which calls only group equations. One that is not known so is left as one equation.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from hetjax.models.remat import INSEPARABLE
from hetjax.programs.split_backward.equations import Equation, Equations, PlainEquation, Values, new_number
from hetjax.programs.split_backward.scan import Carry, Scan, ScanValue
from hetjax.programs.split_backward.shard_map import ShardMap, ShardValue

# What `jax.checkpoint` guards against, merging with the work of the forward, cannot happen in another program.
_GROUPS = ("jit", "pjit", "remat2", "remat", "checkpoint")


def equations_of(traced: ClosedJaxpr) -> tuple[Equations, tuple[int, ...], tuple[int, ...]]:
    """Return (equations, numbers of the inputs, numbers of the outputs)."""
    equations: list[Equation] = []
    constants: Values = {}
    inputs = tuple(new_number() for _ in _open(traced)[0].invars)
    outputs = _add(traced, inputs, equations, constants)
    return Equations(tuple(equations), constants), inputs, tuple(outputs)


def _add(
    traced: ClosedJaxpr | Jaxpr, inputs: Sequence[int], equations: list[Equation], constants: Values, scope: str = ""
) -> list[int]:
    """Append the equations of a function called with `inputs` in a scope; return the numbers of its results."""
    jaxpr, arrays = _open(traced)
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def number(atom: Var | Literal) -> int:
        if not isinstance(atom, Literal):
            return known[atom]
        fixed = new_number()
        constants[fixed] = np.asarray(atom.val, atom.aval.dtype)
        return fixed

    for variable, array in zip(jaxpr.constvars, arrays, strict=True):
        known[variable] = new_number()
        constants[known[variable]] = array
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _GROUPS and eqn.params.get("name") != INSEPARABLE:
            made = _add(
                eqn.params["jaxpr"],
                *([number(atom) for atom in eqn.invars], equations, constants, _scope_of(eqn, scope)),
            )
        else:
            made = [new_number() for _ in eqn.outvars]
            match eqn.primitive.name:
                case "scan":
                    equations.append(_scan(eqn, [number(atom) for atom in eqn.invars], made, scope))
                # Where JAX tracks what varies over the mesh, types inside say so, and a split would have to keep them.
                case "shard_map" if not eqn.params["check_vma"]:
                    equations.append(_shard_map(eqn, [number(atom) for atom in eqn.invars], made, scope))
                case _:
                    equations.append(_plain(eqn, known, made, scope))
        known.update(zip(eqn.outvars, made, strict=True))
    return [number(atom) for atom in jaxpr.outvars]


def _scope_of(eqn: JaxprEqn, outer: str) -> str:
    """Return the scopes that an equation was traced in, as `jax.named_scope` takes them."""
    return "/".join(filter(None, (outer, str(eqn.source_info.name_stack))))


def _plain(eqn: JaxprEqn, known: dict[Var, int], made: Sequence[int], scope: str) -> PlainEquation:
    variables = tuple(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))
    # A result that nothing reads is bound to a variable that stands for none.
    kept = [i for i, variable in enumerate(eqn.outvars) if type(variable).__name__ != "DropVar"]
    return PlainEquation(
        eqn,
        variables,
        tuple(eqn.outvars[i] for i in kept),
        tuple(known[variable] for variable in variables),
        tuple(made[i] for i in kept),
        scope,
    )


def _scan(eqn: JaxprEqn, reads: Sequence[int], makes: Sequence[int], scope: str) -> Scan:
    body, inputs, outputs = equations_of(eqn.params["jaxpr"])
    fixed, carried = _counts(eqn)
    end = fixed + carried
    carries = zip(reads[fixed:end], inputs[fixed:end], outputs[:carried], makes[:carried], strict=True)
    return Scan(
        body=body,
        constants=tuple(ScanValue(*numbers) for numbers in zip(reads[:fixed], inputs[:fixed], strict=True)),
        carries=tuple(Carry(*numbers) for numbers in carries),
        each=tuple(ScanValue(*numbers) for numbers in zip(reads[end:], inputs[end:], strict=True)),
        stacked=tuple(ScanValue(*numbers) for numbers in zip(makes[carried:], outputs[carried:], strict=True)),
        length=eqn.params["length"],
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
        scope=_scope_of(eqn, scope),
    )


def _shard_map(eqn: JaxprEqn, reads: Sequence[int], makes: Sequence[int], scope: str) -> ShardMap:
    body, inputs, outputs = equations_of(eqn.params["jaxpr"])
    mesh, manual = eqn.params["mesh"], eqn.params["newly_manual_axes"]
    return ShardMap(
        body=body,
        inputs=tuple(ShardValue(*value) for value in zip(reads, inputs, eqn.params["in_specs"], strict=True)),
        outputs=tuple(ShardValue(*value) for value in zip(makes, outputs, eqn.params["out_specs"], strict=True)),
        mesh=mesh,
        axes=tuple(axis for axis in mesh.axis_names if axis in manual),
        scope=_scope_of(eqn, scope),
    )


def _counts(eqn: JaxprEqn) -> tuple[int, int]:
    """Return how many inputs of a scan are constants, and how many are carried; jax 0.12 has them in a tree."""
    if "ft_in" in eqn.params:
        constants, carries, _ = eqn.params["ft_in"].unpack()
        return len(constants), len(carries)
    return eqn.params["num_consts"], eqn.params["num_carry"]


def _open(traced: ClosedJaxpr | Jaxpr) -> tuple[Jaxpr, Sequence[jax.Array]]:
    """Return a function's jaxpr and its constants, whichever way the parameter of an equation holds them."""
    return getattr(traced, "jaxpr", traced), getattr(traced, "consts", ())
