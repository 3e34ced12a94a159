"""Models on a data=2, tensor=2 mesh: every number equals that of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.models.parallel.layout_in_force import layout_in_force
from tests.harness.models.generate import generate
from tests.harness.models.tiny_models import (
    build_decoder,
    build_vision,
    cast,
    decoder_batch,
    flat,
    image_batch,
    relative_error,
)

AXIS_OF = {"batch": "data", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


@pytest.fixture
def mesh():
    return Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))


def sharding(mesh, dims):
    return NamedSharding(mesh, P(*[AXIS_OF.get(name) for name in dims]))


def on_mesh(mesh, model, inputs):
    """The model's definition, weights and inputs, placed by the table, and the constraint for activations."""
    definition, weights = nnx.split(model)
    weights = jax.device_put(
        weights, jax.tree.map(lambda w: sharding(mesh, w.out_sharding), weights, is_leaf=lambda x: hasattr(x, "ndim"))
    )
    inputs = {k: jax.device_put(v, sharding(mesh, ("batch", *[None] * (v.ndim - 1)))) for k, v in inputs.items()}
    return definition, weights, inputs


@pytest.mark.parametrize("name", ["decoder", "vision"])
def test_value_and_gradients_equal_one_device(float64, mesh, name):
    if name == "decoder":
        model, inputs = build_decoder(), decoder_batch(np.float64)
    else:
        model, inputs = build_vision(), {"images": image_batch(np.float64)}
    model = cast(model, jnp.float64)
    seen = []

    def constraint(x, dims):
        seen.append(dims)
        return jax.lax.with_sharding_constraint(x, sharding(mesh, dims))

    definition, weights, placed = on_mesh(mesh, model, inputs)

    def objective(weights, inputs):
        return jnp.sum(jnp.sin(next(iter(nnx.merge(definition, weights)(**inputs).values()))))

    def sharded(weights, inputs):
        with layout_in_force(constraint):
            return objective(weights, inputs)

    got, gradients = jax.jit(jax.value_and_grad(sharded))(weights, placed)
    want, want_gradients = jax.jit(jax.value_and_grad(objective))(nnx.state(model), inputs)
    assert relative_error(got, want) < 1e-10
    for path, gradient in flat(want_gradients).items():
        assert relative_error(flat(gradients)[path], gradient) < 1e-10, path
    assert {("batch", "residual_seq", "embed"), ("batch", "seq", "mlp"), ("batch", "seq", "heads", "head_dim")} <= set(
        seen
    )


def test_generated_tokens_equal_one_device(mesh):
    model, batch = build_decoder(), decoder_batch()
    prompt = {
        "tokens": batch["tokens"], "lengths": np.array([12, 9, 10, 6]),
        "image_tokens": batch["image_tokens"], "image_positions": batch["image_positions"],
    }  # fmt: skip
    definition, weights, placed = on_mesh(mesh, model, prompt)

    def run(weights, prompt):
        return generate(nnx.merge(definition, weights), **prompt, max_new_tokens=4, stop_token=-1)

    def sharded(weights, prompt):
        with layout_in_force(lambda x, dims: jax.lax.with_sharding_constraint(x, sharding(mesh, dims))):
            return run(weights, prompt)

    np.testing.assert_array_equal(jax.jit(sharded)(weights, placed), jax.jit(run)(nnx.state(model), prompt))
