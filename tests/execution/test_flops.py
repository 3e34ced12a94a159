import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from hetjax.config.build import batch_shapes
from hetjax.execution.flops import backward_factor, count_flops, forward_flops, model_flops
from hetjax.meshes import Layout
from hetjax.models.dims import RESIDUAL, SEQUENCE
from hetjax.models.parallel.layout_in_force import layout_in_force
from hetjax.models.parallel.sharded_linear import sharded_linear
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
    """T * (6 N + 12 L H K S), where N are the weights that a token is multiplied with."""

    def formula(tokens, weights, layers, heads, width, length):
        return tokens * (6 * weights + 12 * layers * heads * width * length)

    samples, images, patches, rows = 8, 2, 4, 12
    block = 2 * 24 * 24 + 2 * 24 * 12 + 3 * 24 * 48
    llm = formula(samples * rows, 3 * block + 24 * 40, 3, 4, 6, rows)
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


def test_a_frozen_encoder_costs_only_its_forward(make_step):
    step = make_step("--optimizer.frozen", "[vision]")
    assert [backward_factor(step, stage) for stage in ("vision", "llm")] == [0, 2]


def test_a_frozen_language_model_still_passes_the_gradient_on(make_step):
    step = make_step("--optimizer.frozen", "[llm]")
    assert [backward_factor(step, stage) for stage in ("vision", "llm")] == [2, 1]
