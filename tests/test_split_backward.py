"""The two parts of a backward together are the whole: the same numbers, and no product computed twice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.flops import count_flops
from hetjax.split_backward import split_backward
from hetjax.weights import take_apart
from models.remat import remat_in_force
from tests.parity.oracle import relative_error
from tests.parity.problem import VISION, make_batch, make_graph


def language_model():
    skeleton, params, buffers = take_apart(make_graph().build("llm", 0))
    batch = make_batch()["llm"]
    tokens = np.random.default_rng(0).normal(size=(len(batch["tokens"]), 8, 24)).astype(np.float32)
    return lambda params, x: skeleton.assemble(params, buffers)(**batch, image_tokens=x)["loss"], params, tokens


def second_vision_stage():
    skeleton, params, buffers = take_apart(make_graph().build("vision", 0).stage(1, 2))
    hidden = np.random.default_rng(0).normal(size=(4, 2, 4, VISION.width)).astype(np.float32)
    return lambda params, x: jnp.sum(jnp.sin(skeleton.assemble(params, buffers)(hidden=x)["tokens"])), params, hidden


def plain_chain():
    """Without a loop; one weight is used twice, and one gradient of a weight needs that of another."""
    random = np.random.default_rng(0)
    params = {name: random.normal(size=(6, 6)).astype(np.float32) for name in ("a", "b")}

    def call(params, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"] @ params["a"]) ** 2)

    return call, params, random.normal(size=(5, 6)).astype(np.float32)


def backward_of(make, remat="none"):
    """(a backward, the arguments that it is called with)."""
    call, params, inputs = make()
    with remat_in_force(remat):
        _, vjp = jax.vjp(call, params, inputs)
    leaves, tree = jax.tree.flatten(vjp)
    return (lambda leaves, cotangent: tree.unflatten(leaves)(cotangent)), (leaves, jnp.float32(1))


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
@pytest.mark.parametrize("make", [language_model, second_vision_stage, plain_chain], ids=lambda make: make.__name__)
def test_both_parts_give_the_gradients_of_the_whole_and_share_out_its_products(make, remat):
    backward, arguments = backward_of(make, remat)
    of_weights, of_inputs = jax.jit(backward)(*arguments)
    parts = split_backward(backward, *arguments)
    found_inputs, crossing = jax.jit(parts.first)(*arguments)
    read = tuple(jax.tree.leaves(arguments)[i] for i in parts.reads)
    found_weights = jax.jit(parts.later)(read, crossing)
    errors = jax.tree.map(relative_error, (found_weights, found_inputs), (of_weights, of_inputs))
    assert max(jax.tree.leaves(errors)) < 2e-6
    whole, first = count_flops(backward, *arguments), count_flops(parts.first, *arguments)
    later = count_flops(parts.later, read, crossing)
    assert first + later == whole
    assert first > 0 and later > 0


def test_gradients_of_inputs_leave_the_products_that_make_gradients_of_weights_to_the_other_part():
    """Of a chain of matrix products each part has half."""
    random = np.random.default_rng(0)
    layers = random.normal(size=(3, 16, 16)).astype(np.float32)

    def call(layers, x):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, layers)[0])

    backward, arguments = backward_of(lambda: (call, layers, random.normal(size=(8, 16)).astype(np.float32)))
    parts = split_backward(backward, *arguments)
    _, crossing = jax.eval_shape(parts.first, *arguments)
    read = tuple(jax.tree.leaves(arguments)[i] for i in parts.reads)
    product = 2 * 3 * 8 * 16 * 16
    assert count_flops(parts.first, *arguments) == product
    assert count_flops(parts.later, read, crossing) == product
    assert [aval.shape for aval in crossing] == [(3, 8, 16)], "the gradient of what each layer puts out, and no more"


def test_a_function_that_cannot_be_taken_apart_goes_to_the_first_part_as_a_whole():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, d: tuple(jax.lax.cond(True, _both, _both, *kept, d)))
    random = np.random.default_rng(0)
    x, w = random.normal(size=(3, 4)), random.normal(size=(4, 4))
    backward, arguments = backward_of(lambda: (lambda w, x: jnp.sum(jnp.sin(product(x, w))), w, x))
    parts = split_backward(backward, *arguments)
    found_inputs, crossing = parts.first(*arguments)
    read = tuple(jax.tree.leaves(arguments)[i] for i in parts.reads)
    of_weights, of_inputs = backward(*arguments)
    np.testing.assert_allclose(found_inputs, of_inputs, rtol=1e-6)
    np.testing.assert_allclose(parts.later(read, crossing), of_weights, rtol=1e-6)
    assert count_flops(functools.partial(parts.later), read, crossing) == 0


def _both(x, w, d):
    return d @ w.T, x.T @ d
