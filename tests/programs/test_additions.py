"""Gradients of scanned layers are added to sums inside of the loop; the numbers are those of adding them afterwards."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.models.remat import remat_in_force, rematerialized
from hetjax.programs.split_backward.additions import adding_backward
from hetjax.programs.split_backward.halves import split_backward

# L layers · U layers of a unit · D width
L, U, D = 3, 2, 4
RNG = np.random.default_rng(0)


def layer(x, weight):
    return jnp.tanh(x @ weight["kernel"]) * weight["scale"]


def layers_of(*leading):
    return {
        "kernel": RNG.normal(size=(*leading, D, D)).astype(np.float32),
        "scale": RNG.normal(size=(*leading, D)).astype(np.float32),
    }


def stack(weights, x):
    return jax.lax.scan(lambda x, w: (rematerialized(layer)(x, w), None), x, weights["layers"])[0]


def units(weights, x):
    """Loops in a loop, and a layer of its own in each unit."""

    def unit(x, each):
        inner, single = each
        x, _ = jax.lax.scan(lambda x, w: (rematerialized(layer)(x, w), None), x, inner)
        return rematerialized(layer)(x, single), None

    return jax.lax.scan(unit, x, (weights["layers"], weights["singles"]))[0]


def used_twice(weights, x):
    """The gradient of the stacked weights is a sum of two."""
    return stack(weights, x) + weights["layers"]["kernel"].sum()


CASES = {
    "stack": (stack, {"layers": layers_of(L)}),
    "units": (units, {"layers": layers_of(L, U), "singles": layers_of(L)}),
    "used twice": (used_twice, {"layers": layers_of(L)}),
}


def backward_of(call, shards):
    """(gradients of weights by path, of x) of a call, on each of several shards by itself."""

    def backward(weights, x, cotangent):
        _, vjp = jax.vjp(call, weights, x)
        of_weights, of_x = vjp(cotangent)
        return flat(of_weights), of_x

    return jax.vmap(backward, in_axes=(None, 0, 0)) if shards > 1 else backward


def flat(weights):
    return {f"{a}/{b}": leaf for a, part in weights.items() for b, leaf in part.items()}


def problem(case, shards):
    """(backward, its arguments, sums of earlier microbatches)."""
    call, weights = CASES[case]
    leading = (shards,) if shards > 1 else ()
    x, cotangent = (RNG.normal(size=(*leading, 5, D)).astype(np.float32) for _ in range(2))
    sums = {path: RNG.normal(size=(*leading, *leaf.shape)).astype(np.float32) for path, leaf in flat(weights).items()}
    return backward_of(call, shards), (weights, x, cotangent), sums


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_sums_are_those_of_adding_afterwards(float64, case, shards, remat):
    with remat_in_force(remat):
        backward, *given = problem(case, shards)
        arguments, sums = jax.tree.map(np.float64, given)
        of_weights, of_x = jax.jit(backward)(*arguments)
        added, found_x = jax.jit(adding_backward(backward, arguments, sums))(*arguments, sums)
    assert added.keys() == sums.keys()
    for path, total in added.items():
        np.testing.assert_allclose(total, sums[path] + of_weights[path], rtol=1e-12, atol=1e-12, err_msg=path)
    np.testing.assert_allclose(found_x, of_x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("case", ["stack", "units"])
def test_no_loop_stacks_gradients_of_weights(case, shards, split):
    """In a split backward the second part adds them."""
    backward, arguments, sums = problem(case, shards)
    if not split:
        run, taken = adding_backward(backward, arguments, sums), (*arguments, sums)
    else:
        parts = split_backward(backward, *arguments)
        run, leaves = parts.later, jax.tree.leaves(arguments)
        _, crossing = jax.eval_shape(parts.first, *arguments)
        taken = [leaves[i] for i in run.reads], crossing, [sums[path] for path in sorted(sums)]
    size = D * D * shards
    assert not [shape for shape in stacked_by(jax.make_jaxpr(run)(*taken).jaxpr) if np.prod(shape[1:]) >= size]
    plain = stacked_by(jax.make_jaxpr(backward)(*arguments).jaxpr)
    assert [shape for shape in plain if np.prod(shape[1:]) >= size], "else there is nothing to see"


def stacked_by(jaxpr):
    """Shapes of what the reversed loops of a function stack; the rows that they carry along are smaller."""
    shapes = []
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda each: hasattr(each, "eqns")):
            if hasattr(inner, "eqns"):
                shapes += stacked_by(getattr(inner, "jaxpr", inner))
        if equation.primitive.name == "scan" and equation.params["reverse"]:
            body = equation.params["jaxpr"].jaxpr.outvars
            stacked = zip(equation.outvars, body, strict=True)
            shapes += [out.aval.shape for out, inner in stacked if out.aval.shape != inner.aval.shape]
    return shapes


def test_gradients_in_fewer_bits_are_added_in_those_of_the_sums():
    backward, arguments, sums = problem("stack", 1)
    arguments = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), arguments)
    of_weights, _ = jax.jit(backward)(*arguments)
    added, _ = jax.jit(adding_backward(backward, arguments, sums))(*arguments, sums)
    for path, total in added.items():
        assert total.dtype == jnp.float32
        np.testing.assert_allclose(total, sums[path] + of_weights[path].astype(np.float32), rtol=1e-2, atol=0.05)


def test_what_is_computed_keeps_the_names_of_the_parts_that_it_is_of():
    def named(weights, x):
        def body(x, w):
            with jax.named_scope("inner"):
                return jnp.tanh(x @ w), None

        with jax.named_scope("outer"):
            return jax.jit(lambda x: jax.lax.scan(body, x, weights)[0])(x)

    weights, x = RNG.normal(size=(L, D, D)).astype(np.float32), RNG.normal(size=(5, D)).astype(np.float32)
    run = adding_backward(
        lambda w, x, y: (lambda found: ({"w": found[0]}, found[1]))(jax.vjp(named, w, x)[1](y)),
        *((weights, x, x), {"w": weights}),
    )
    text = jax.jit(run).lower(weights, x, x, {"w": weights}).compile().as_text()
    names = re.findall(r'op_name="([^"]*dot_general)"', text)
    assert [name for name in names if "transpose(jvp(outer))" in name and "inner" in name], names
