import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.test_util import check_grads

from hetjax.models.parts.norms import LayerNorm, RMSNorm

X = np.random.default_rng(0).normal(2.0, 3.0, size=(2, 3, 16))
SCALE, BIAS = np.linspace(0.5, 2, 16, dtype=np.float32), np.linspace(-1, 1, 16, dtype=np.float32)


def test_rms_norm_equals_its_formula(float64):
    norm = RMSNorm(16, epsilon=0.1, rngs=nnx.Rngs(0))
    norm.scale[...] = SCALE
    want = X / np.sqrt((X**2).mean(-1, keepdims=True) + 0.1) * SCALE
    np.testing.assert_allclose(norm(X), want, rtol=1e-6)


def test_layer_norm_equals_its_formula(float64):
    norm = LayerNorm(16, epsilon=0.1, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = SCALE, BIAS
    want = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 0.1)
    np.testing.assert_allclose(norm(X), want * SCALE + BIAS, rtol=1e-6, atol=1e-7)


def test_bfloat16_statistics_are_float32():
    # 256 + 1 is 256 in bfloat16: a sum of squares taken there would stop growing.
    x = jnp.ones((1, 4096), jnp.bfloat16)
    norm = RMSNorm(4096, epsilon=1e-6, rngs=nnx.Rngs(0))
    norm.scale = nnx.Param(norm.scale[...].astype(jnp.bfloat16))
    assert norm(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(norm(x), np.float32), 1.0)


def test_gradient_equals_finite_differences(float64):
    norm = LayerNorm(16, epsilon=1e-6, rngs=nnx.Rngs(0))
    check_grads(norm, (X,), order=1, modes=["rev"])
