"""Products of plain modules are right where XLA's partitioner would compute them wrongly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from hetjax.generation.stage_programs import Encode
from hetjax.meshes import Layout
from hetjax.programs.whole_weights import WholeWeights
from tests.harness.compiled_trainer import make_trainer as make_own_models
from tests.harness.compiled_trainer import trace_alone
from tests.harness.optimizers import Placed, gradients_on_one_device, largest_error, make_batch, make_trainer
from tests.harness.parity.problem import make_batch as make_own_batch

ONE = Layout(devices="0")


def tower_on(layout: Layout, dtype: str = "float32", **options):
    options |= {"param_dtype": dtype, "compute_dtype": dtype}
    return make_trainer(optax.sgd(1.0), Placed(ONE, layout), **options)


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(Layout(data=2, fsdp=2, tensor=2), id="data-fsdp-tensor"),
        pytest.param(
            Layout(fsdp=2, expert=2, tensor=2, rules={"embed": "expert"}),
            id="fsdp-expert-tensor",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.parametrize("schedule", ["1f1b", pytest.param("zero_bubble", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("float64")
def test_gradients_of_a_module_with_plain_products(layout, schedule):
    loss, gradients = gradients_on_one_device()
    trainer = tower_on(layout, "float64", schedule=schedule)
    found_loss, found = trainer.loss_and_gradients(trainer.init(), make_batch())
    assert float(found_loss) == pytest.approx(loss, rel=1e-12)
    assert largest_error(found, gradients) < 1e-10


@pytest.mark.parametrize(
    ("layout", "gathered"),
    [
        (Layout(data=2, fsdp=2, tensor=2), True),
        (Layout(data=2, fsdp=2, tensor=2, zero=1), False),
        (Layout(fsdp=4, tensor=2), False),
        (Layout(data=4, fsdp=2), False),
        (Layout(data=4, tensor=2), False),
        (Layout(data=2, context=2, tensor=2, rules={"embed": "context"}), False),
        (Layout(expert=2, fsdp=2, tensor=2), False),
        (Layout(expert=2, fsdp=2, tensor=2, rules={"embed": "expert"}), True),
    ],
    ids=lambda value: None if isinstance(value, Layout) else str(value),
)
def test_only_weights_at_risk_are_gathered(layout, gathered):
    program = trace_alone(tower_on(layout), make_batch()).programs["tower"]
    whole = WholeWeights(program.stage, program.stage.call, program.stage.compute_params, {}, program.inputs)
    expected = {"layers/kernel": PartitionSpec(None, None, ("tensor",)), "out/kernel": PartitionSpec(None, ("tensor",))}
    found = {path: to.spec for path, to in whole.shardings.items()}
    assert found == (expected if gathered else {})


def test_no_weight_is_kept_for_the_backward():
    step = trace_alone(tower_on(Layout(data=2, fsdp=2, tensor=2)), make_batch())
    program = step.programs["tower"]
    weights = {aval.shape for aval in program.stage.params.values() if len(aval.shape) > 1}
    assert not weights & {aval.shape for aval in program.residual_shapes}


@pytest.mark.parametrize("zero", [3, 1])
def test_they_are_gathered_to_generate_too(zero):
    layout = Layout(data=2, fsdp=2, tensor=2, zero=zero)
    program = trace_alone(tower_on(layout), make_batch()).programs["tower"]
    encoding = Encode(program.stage, program.inputs).programs["forward"]
    gathered = [eqn for eqn in encoding.traced.jaxpr.eqns if eqn.primitive.name == "sharding_constraint"]
    assert len(gathered) == (2 if zero == 3 else 0)


def test_layers_that_communicate_by_themselves_keep_their_weights_split():
    split = Layout(data=2, fsdp=2, tensor=2)
    for program in trace_alone(make_own_models(split, split), make_own_batch()).programs.values():
        stage = program.stage
        whole = WholeWeights(stage, stage.call, stage.compute_params, stage.buffers, program.inputs)
        assert not whole.shardings


def _with_own_gradient(product):
    own = jax.custom_vjp(product)
    own.defvjp(lambda x, w: (product(x, w), (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    return own


WRAPPERS = {
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "custom_vjp": _with_own_gradient,
    "cond": lambda product: lambda x, w: jax.lax.cond(x[0, 0] > 0, product, lambda x, w: x, x, w),
    "while": lambda product: lambda x, w: jax.lax.fori_loop(0, x.astype(int)[0, 0], lambda i, y: product(y, w), x),
    "scan": lambda product: lambda x, w: jax.lax.scan(lambda y, v: (product(y, v), None), x, jnp.stack([w, w.T]))[0],
    "convolution": lambda product: lambda x, w: jax.lax.conv(x[:, :, None], w[:, :, None], (1,), "SAME"),
    "cast and scaled": lambda product: lambda x, w: product(x, 2 * w.astype(np.float32).reshape(-1).reshape(w.shape).T),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_products_are_found_inside_of(wrapper):
    stage = tower_on(Layout(data=2, fsdp=2, tensor=2)).stages[-1]
    product = WRAPPERS[wrapper](lambda x, w: jnp.tanh(x @ w))
    x = jax.ShapeDtypeStruct((8, 8), np.float32)
    params = stage.compute_params

    def of_layers(params, x):
        return product(x, params["layers/kernel"][0].astype(x.dtype)), params["out/kernel"] * 2

    assert set(WholeWeights(stage, of_layers, params, x).shardings) == {"layers/kernel"}
