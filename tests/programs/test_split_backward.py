"""The two parts of a backward together are the whole: the same numbers, and no product computed twice."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.execution import flops
from hetjax.execution.flops import count_flops
from hetjax.meshes import Layout
from hetjax.models.kernels import token_losses
from hetjax.models.remat import remat_in_force
from hetjax.programs.split_backward.halves import split_backward
from hetjax.stages.flat_state import flatten_module
from tests.harness.choices import others_slow
from tests.harness.parity.comparison import make_trainer
from tests.harness.parity.oracle import relative_error
from tests.harness.parity.problem import LLM, VISION, make_batch, make_graph


def language_model():
    skeleton, params, buffers = flatten_module(make_graph().build("llm", 0))
    batch = make_batch()["llm"]
    tokens = np.random.default_rng(0).normal(size=(len(batch["tokens"]), 8, 24)).astype(np.float32)
    return lambda params, x: skeleton.assemble(params, buffers)(**batch, image_tokens=x)["loss"], params, tokens


def second_vision_stage():
    skeleton, params, buffers = flatten_module(make_graph().build("vision", 0).stage(1, 2))
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
        vjp = jax.jit(lambda params, inputs: jax.vjp(call, params, inputs)[1])(params, inputs)
    leaves, tree = jax.tree.flatten(vjp)
    return (lambda leaves, cotangent: tree.unflatten(leaves)(cotangent)), (leaves, jnp.float32(1))


def zeros(arrays):
    """Sums of no gradients yet."""
    return [jnp.zeros_like(array) for array in arrays]


WAYS = [
    (make, remat) for make in (language_model, second_vision_stage, plain_chain) for remat in ("none", "full", "dots")
]
QUICK_WAYS = [(language_model, "none"), (language_model, "full"), (second_vision_stage, "none"), (plain_chain, "none")]


@pytest.mark.parametrize(
    ("make", "remat"), others_slow(WAYS, QUICK_WAYS), ids=lambda value: getattr(value, "__name__", value)
)
def test_both_parts_give_the_gradients_of_the_whole_and_share_out_its_products(make, remat, monkeypatch):
    # All products that the programs ask for: those with scores behind the diagonal are in equations that are cut.
    monkeypatch.setattr(flops, "seen_in", lambda _: ())
    backward, arguments = backward_of(make, remat)
    of_weights, of_inputs = jax.jit(backward)(*arguments)
    parts = split_backward(backward, *arguments)
    found_inputs, crossing = jax.jit(parts.first)(*arguments)
    read = tuple(jax.tree.leaves(arguments)[i] for i in parts.later.reads)
    expected = jax.tree.leaves(of_weights)
    found_weights = jax.jit(parts.later)(read, crossing, zeros(expected))
    errors = jax.tree.map(relative_error, ([*found_weights], found_inputs), (expected, of_inputs))
    assert max(jax.tree.leaves(errors)) < 2e-6
    leaves = jax.tree.leaves(arguments)
    for piece in parts.later_apart:
        want = [expected[place] for place in piece.outputs]
        made = jax.jit(piece)([leaves[i] for i in piece.reads], [crossing[i] for i in piece.crossing], zeros(want))
        errors = jax.tree.map(relative_error, [*made], want)
        assert max(errors) < 2e-6
    assert sorted(place for piece in parts.later_apart for place in piece.outputs) == list(range(len(expected)))
    whole, first = count_flops(backward, *arguments), count_flops(parts.first, *arguments)
    later = count_flops(parts.later, read, crossing, zeros(expected))
    assert first + later == whole
    assert first > 0 and later > 0


def test_the_layers_and_the_embedding_are_pieces_of_their_own():
    backward, arguments = backward_of(language_model, "none")
    parts = split_backward(backward, *arguments)
    names = sorted(language_model()[1])
    pieces = [{names[place].partition("/")[0] for place in piece.outputs} for piece in parts.later_apart]
    assert {"layers"} in pieces and {"embedding"} in pieces


def test_gradients_of_inputs_leave_the_products_that_make_gradients_of_weights_to_the_other_part():
    """Of a chain of matrix products each part has half."""
    random = np.random.default_rng(0)
    layers = random.normal(size=(3, 16, 16)).astype(np.float32)

    def call(layers, x):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, layers)[0])

    backward, arguments = backward_of(lambda: (call, layers, random.normal(size=(8, 16)).astype(np.float32)))
    parts = split_backward(backward, *arguments)
    _, crossing = jax.eval_shape(parts.first, *arguments)
    read = tuple(jax.tree.leaves(arguments)[i] for i in parts.later.reads)
    product = 2 * 3 * 8 * 16 * 16
    assert count_flops(parts.first, *arguments) == product
    assert count_flops(parts.later, read, crossing, zeros([layers])) == product
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
    read = tuple(jax.tree.leaves(arguments)[i] for i in parts.later.reads)
    of_weights, of_inputs = backward(*arguments)
    np.testing.assert_allclose(found_inputs, of_inputs, rtol=1e-6)
    np.testing.assert_allclose(parts.later(read, crossing, zeros([w]))[0], of_weights, rtol=1e-6)
    assert count_flops(functools.partial(parts.later), read, crossing, zeros([w])) == 0


def _both(x, w, d):
    return d @ w.T, x.T @ d


@pytest.mark.parametrize(
    "degrees", [{"tensor": 2}, {"fsdp": 2}, {"data": 2}, {"context": 2}, {"data": 2, "tensor": 2}], ids=str
)
def test_a_stage_on_several_devices_is_split_as_one_device_is(degrees):
    """Products inside of `shard_map` are shared out too: the split goes through it."""
    one, several = parts_of_a_stage({}), parts_of_a_stage(degrees)
    assert several[1] == one[1] > 0.7 * one[0]
    if "context" not in degrees:
        assert several == one


def parts_of_a_stage(degrees: dict[str, int]) -> tuple[int, int]:
    """FLOPs of both parts of the last of two stages."""
    size = 2 * math.prod(degrees.values())
    layouts = Layout(devices="7"), Layout(devices=list(range(size)), stage=2, **degrees)
    trainer = make_trainer(layouts, "float32", "zero_bubble", 4)
    step = trainer.trace(make_batch()).step
    program = step.programs["llm.1"]
    arguments = program.backward_shapes
    parts = split_backward(program.functions.gradients, *arguments)
    _, crossing = jax.eval_shape(parts.first, *arguments)
    read = tuple(jax.tree.leaves(arguments)[i] for i in parts.later.reads)
    sums = jax.tree.leaves(program.stage.gradients)
    return count_flops(parts.first, *arguments), count_flops(parts.later, read, crossing, sums)


def test_chunks_of_logits_do_not_cross(monkeypatch):
    """The loop over chunks of the loss stays whole: split, its second part would read the gradients of all logits."""
    monkeypatch.setattr(token_losses, "MOST_LOGITS", 16 * LLM.vocab_size)
    backward, arguments = backward_of(language_model, "none")
    parts = split_backward(backward, *arguments)
    _, crossing = jax.eval_shape(parts.first, *arguments)
    tokens = math.prod(make_batch()["llm"]["tokens"].shape)
    assert tokens > 16
    assert crossing and not [aval.shape for aval in crossing if aval.size == tokens * LLM.vocab_size]
    of_weights, _ = jax.jit(backward)(*arguments)
    read = tuple(jax.tree.leaves(arguments)[i] for i in parts.later.reads)
    _, crossing = jax.jit(parts.first)(*arguments)
    expected = jax.tree.leaves(of_weights)
    found = jax.jit(parts.later)(read, crossing, zeros(expected))
    assert max(jax.tree.map(relative_error, [*found], expected)) < 2e-6
