import math

import numpy as np
from flax import nnx
from jax.test_util import check_grads

from hetjax.models.parts.mlp import GeluMLP, SwiGLU

X = np.random.default_rng(0).normal(size=(2, 3, 8))


def weights(module):
    return {".".join(path): np.asarray(leaf[...], np.float64) for path, leaf in nnx.to_flat_state(nnx.state(module))}


def test_swiglu_equals_its_formula(float64):
    mlp = SwiGLU(8, 12, rngs=nnx.Rngs(0))
    w = weights(mlp)
    gate, up = X @ w["gate.kernel"], X @ w["up.kernel"]
    np.testing.assert_allclose(mlp(X), gate / (1 + np.exp(-gate)) * up @ w["down.kernel"], rtol=1e-10)


def test_gelu_mlp_equals_its_formula_with_the_exact_gelu(float64):
    mlp = GeluMLP(8, 12, 5, rngs=nnx.Rngs(0))
    mlp.up.bias[...] += np.linspace(-1, 1, 12, dtype=np.float32)
    mlp.down.bias[...] += 3.0
    w = weights(mlp)
    hidden = X @ w["up.kernel"] + w["up.bias"]
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    np.testing.assert_allclose(mlp(X), hidden @ w["down.kernel"] + w["down.bias"], rtol=1e-10)


def test_gradients_equal_finite_differences(float64):
    for mlp in (SwiGLU(8, 12, rngs=nnx.Rngs(0)), GeluMLP(8, 12, 5, rngs=nnx.Rngs(0))):
        check_grads(mlp, (X,), order=1, modes=["rev"])
