"""Finds which inputs of a traced function each of its outputs depends on.

Names are those of `jax.extend.core`. Of the parameters of primitives, which JAX does not promise to keep, it reads the
functions inside of calls and of "cond"; any other equation is taken to make all its results from all that it reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

# Calls that only group equations: their function takes what the equation reads, in order.
_CALLS = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr",
    "checkpoint": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr",
}  # fmt: skip


def dependencies(traced: ClosedJaxpr | Jaxpr, labels: Sequence[int]) -> list[int]:
    """Return for each output the labels of all inputs that it depends on.

    Args:
        traced: the function, as `jax.make_jaxpr` returns it.
        labels: for each input a set of labels as the bits of an integer.
    """
    jaxpr = _open(traced)
    known = dict(zip(jaxpr.invars, labels, strict=True))

    def label(atom) -> int:
        return 0 if isinstance(atom, Literal) else known.get(atom, 0)

    for eqn in jaxpr.eqns:
        known.update(zip(eqn.outvars, _results(eqn, [label(atom) for atom in eqn.invars]), strict=True))
    return [label(atom) for atom in jaxpr.outvars]


def primitives(traced: ClosedJaxpr | Jaxpr) -> Iterator[str]:
    """Yield the name of the primitive of every equation, those inside of others too."""
    for eqn in _open(traced).eqns:
        yield eqn.primitive.name
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, ClosedJaxpr | Jaxpr):
                    yield from primitives(inner)


def _results(eqn: JaxprEqn, read: Sequence[int]) -> Sequence[int]:
    """The labels of an equation's results from those of what it reads."""
    name = eqn.primitive.name
    inner = eqn.params.get(_CALLS.get(name, ""))
    if inner is not None and len(_open(inner).invars) == len(read):
        return dependencies(inner, read)
    if name == "cond":
        which, *operands = read
        taken = [dependencies(branch, operands) for branch in eqn.params["branches"]]
        return [which | _union(found) for found in zip(*taken, strict=True)]
    return [_union(read)] * len(eqn.outvars)


def _union(labels: Sequence[int]) -> int:
    found = 0
    for label in labels:
        found |= label
    return found


def _open(traced: ClosedJaxpr | Jaxpr) -> Jaxpr:
    return getattr(traced, "jaxpr", traced)
