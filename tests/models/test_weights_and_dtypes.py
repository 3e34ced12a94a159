"""What holds for the weights of every model: dim names, one dtype throughout, no copies kept for the backward."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.harness.models.tiny_models import (
    DECODER,
    VISION,
    build_decoder,
    build_vision,
    cast,
    decoder_batch,
    image_batch,
)  # fmt: skip

MODELS = {
    "decoder": (build_decoder, lambda dtype: decoder_batch(dtype)),
    "vision": (build_vision, lambda dtype: {"images": image_batch(dtype)}),
}
NAMES = {"layers", "embed", "heads", "kv_heads", "head_dim", "mlp", "vocab", "patch", "width", None}


@pytest.fixture(params=MODELS)
def model_and_inputs(request):
    return MODELS[request.param]


def as_function(model):
    definition, weights = nnx.split(model)

    def run(weights, inputs):
        return jnp.sum(next(iter(nnx.merge(definition, weights)(**inputs).values())))

    return run, weights


def dtypes_in(jaxpr):
    """The dtypes of all values in a jaxpr and in those inside it."""
    found = {v.aval.dtype for eqn in jaxpr.eqns for v in (*eqn.invars, *eqn.outvars) if hasattr(v.aval, "dtype")}
    for eqn in jaxpr.eqns:
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found |= dtypes_in(inner)
    return found


def test_every_weight_names_all_its_dims(model_and_inputs):
    for path, weight in nnx.to_flat_state(nnx.state(model_and_inputs[0]())):
        assert len(weight.out_sharding) == weight.ndim, path
        assert set(weight.out_sharding) <= NAMES, path
        sharded = [name for name in weight.out_sharding if name]
        assert len(sharded) == len(set(sharded)), path
        assert (path[0] == "layers") == (weight.out_sharding[0] == "layers"), path


def test_float64_weights_compute_in_float64_throughout(float64, model_and_inputs):
    build, inputs = model_and_inputs
    for dtype, other in ((np.float64, np.float32), (np.float32, np.float64)):
        run, weights = as_function(cast(build(), dtype))
        jaxpr = jax.make_jaxpr(jax.grad(run))(weights, {k: v for k, v in inputs(dtype).items()}).jaxpr
        found = dtypes_in(jaxpr)
        assert np.dtype(dtype) in found and np.dtype(other) not in found


def test_bfloat16_weights_give_bfloat16_gradients(model_and_inputs):
    build, inputs = model_and_inputs
    run, weights = as_function(cast(build(), jnp.bfloat16))
    gradients = jax.eval_shape(jax.grad(run), weights, inputs(np.float32))
    assert {gradient.dtype for gradient in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.bfloat16)}


def test_backward_keeps_no_copy_of_the_weights():
    decoder = build_decoder(dataclasses.replace(DECODER, width=128, mlp_width=640, vocab_size=900))
    tokens = np.zeros((1, 4), int)
    text = {"tokens": tokens, "labels": tokens, "loss_weights": np.ones((1, 4), np.float32)}
    vision = build_vision(dataclasses.replace(VISION, width=128, mlp_width=640))
    for model, inputs in ((decoder, text), (vision, {"images": np.zeros((1, 1, 8, 8, 3), np.float32)})):
        run, weights = as_function(cast(model, jnp.bfloat16))

        @jax.jit
        def forward(weights, inputs, run=run):
            out, vjp = jax.vjp(lambda w: run(w, inputs), weights)
            vjp.args_res[0] = None
            return out, vjp

        kept = jax.tree.leaves(forward(weights, inputs)[1])
        shapes = {weight.shape for weight in jax.tree.leaves(weights) if weight.ndim > 2}
        assert not shapes & {leaf.shape for leaf in kept}
        # What is left are activations: of four tokens, against some 3e5 weights a layer.
        assert sum(leaf.nbytes for leaf in kept) < 0.1 * sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
