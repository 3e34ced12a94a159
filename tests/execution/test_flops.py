from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from hetjax.config.build import batch_shapes
from hetjax.execution.flops import backward_factor, count_flops, forward_flops, model_flops
from hetjax.meshes import Layout
from hetjax.models.dims import RESIDUAL, SEQUENCE
from hetjax.models.kernels.attention_scores import Packed
from hetjax.models.parallel.layout_in_force import NO_DEVICE, layout_in_force
from hetjax.models.parallel.sharded_attention import sharded_attention
from hetjax.models.parallel.sharded_linear import sharded_linear
from hetjax.models.parallel.zigzag_order import causal_order
from hetjax.models.parts.linear import Linear
from tests.harness.models.layouts import constraint_of, splits_of


@pytest.fixture
def make_step(make_config, make_trainer):
    def make(*changes):
        config = make_config(*changes)
        return make_trainer(*changes).trace(batch_shapes(config.data, config.model)).step

    return make


def test_a_matrix_product_counts_two_for_each_multiply_and_add():
    left, right = jax.ShapeDtypeStruct((2, 3, 5), jnp.float32), jax.ShapeDtypeStruct((2, 5, 7), jnp.float32)
    assert count_flops(jnp.matmul, left, right) == 2 * 2 * 3 * 5 * 7


def test_a_scan_counts_as_often_as_it_runs():
    x, weights = jax.ShapeDtypeStruct((4, 8), jnp.float32), jax.ShapeDtypeStruct((6, 8, 8), jnp.float32)
    assert count_flops(lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w), x, weights) == 6 * 2 * 4 * 8 * 8


def test_a_rematerialized_function_inside_a_jit_is_counted():
    x = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    assert count_flops(jax.jit(jax.checkpoint(lambda x: x @ x.T)), x) == 2 * 4 * 4 * 8


def test_a_training_step_has_the_flops_of_the_formula_of_palm(make_step):
    """T * (6 N + 12 L H K S), where N are the weights that a token is multiplied with and S the keys that it sees."""

    def formula(tokens, weights, layers, heads, width, keys):
        return tokens * (6 * weights + 12 * layers * heads * width * keys)

    samples, images, patches, rows = 8, 2, 4, 12
    block = 2 * 24 * 24 + 2 * 24 * 12 + 3 * 24 * 48
    # A token sees itself and those before it: half of the sequence and half of itself.
    llm = formula(samples * rows, 3 * block + 24 * 40, 3, 4, 6, (rows + 1) / 2)
    patch_and_projector = 48 * 16 + 16 * 32 + 32 * 24
    vision = formula(
        samples * images * patches, 2 * (4 * 16 * 16 + 2 * 16 * 32) + patch_and_projector, 2, 2, 8, patches
    )
    step = make_step()
    assert model_flops(step) == llm + vision
    # Fewer and larger programs, and as many products.
    assert model_flops(make_step("--microbatches", "{llm: 4, vision: 2}")) == llm + vision
    assert forward_flops(step)["llm"] == llm / 3 / step.schedule.microbatches


@pytest.mark.parametrize(
    "layout",
    [Layout(tensor=4), Layout(data=2, tensor=2, sequence_parallel=False), Layout(fsdp=2, context=2, tensor=2)],
    ids=["tensor", "data and tensor", "fsdp, context and tensor"],
)
def test_a_split_map_counts_on_all_devices_that_share_it_and_once_on_those_that_repeat_it(layout):
    linear = Linear({"embed": 8}, {"mlp": 16}, rngs=nnx.Rngs(0))
    x = jax.ShapeDtypeStruct((4, 8, 8), jnp.float32)

    def run(x):
        with layout_in_force(constraint_of(layout), splits_of(layout)):
            return sharded_linear(x, linear, given=RESIDUAL, wanted=SEQUENCE)

    assert count_flops(run, x) == 2 * 4 * 8 * 8 * 16


@pytest.mark.parametrize("gradient", [False, True])
def test_attention_counts_the_scores_of_the_segments_that_are_assumed(gradient):
    shape, ids = jax.ShapeDtypeStruct((3, 60, 4, 8), jnp.float32), jax.ShapeDtypeStruct((3, 60), jnp.int32)

    def attend(*arguments, causal):
        order = causal_order(60) if causal else None
        with layout_in_force(lambda x, dims: x, device=NO_DEVICE):
            return sharded_attention(*arguments[:3], segments=arguments[3], order=order)

    def run(query, key, value, ids, causal):
        if not gradient:
            return attend(query, key, value, ids, causal=causal)
        return jax.grad(lambda *qkv: attend(*qkv, ids, causal=causal).sum(), (0, 1, 2))(query, key, value)

    # Of a gradient what the forward asks for, the scores once more, and two products for each.
    product, products = 2 * 3 * 4 * 8, 7 if gradient else 2
    for packing, causal, scores in (
        ((), False, 60 * 60),
        ((), True, 60 * 61 // 2),
        ((Packed(60, 20),), False, 3 * 20 * 20),
        ((Packed(40, 40), Packed(20, 10)), True, 40 * 41 // 2 + 2 * (10 * 11 // 2)),
    ):
        counted = count_flops(partial(run, causal=causal), shape, shape, shape, ids, packing=packing)
        assert counted == product * products * scores


def test_a_frozen_encoder_costs_only_its_forward(make_step):
    step = make_step("--optimizer.frozen", "[vision]")
    assert [backward_factor(step, stage) for stage in ("vision", "llm")] == [0, 2]


def test_a_frozen_language_model_still_passes_the_gradient_on(make_step):
    step = make_step("--optimizer.frozen", "[llm]")
    assert [backward_factor(step, stage) for stage in ("vision", "llm")] == [2, 1]
