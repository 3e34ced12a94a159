import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax.models.parts.linear import Linear


def test_contracts_the_trailing_dims_with_the_kernel():
    linear = Linear({"heads": 3, "head_dim": 4}, {"embed": 5}, bias=True, rngs=nnx.Rngs(0))
    linear.bias[...] += 2.0
    x = np.random.default_rng(0).normal(size=(2, 6, 3, 4)).astype(np.float32)
    want = np.einsum("bshk,hkd->bsd", x, linear.kernel[...]) + 2.0
    np.testing.assert_allclose(linear(x), want, rtol=1e-5, atol=1e-5)


def test_initial_variance_is_one_over_fan_in():
    linear = Linear({"heads": 8, "head_dim": 32}, {"embed": 512}, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(jnp.var(linear.kernel[...]) * 256, 1, rtol=0.02)


def test_kernel_is_read_without_copy_or_transpose():
    linear = Linear({"embed": 6}, {"heads": 2, "head_dim": 4}, rngs=nnx.Rngs(0))
    definition, weights = nnx.split(linear)
    jaxpr = jax.make_jaxpr(lambda w, x: nnx.merge(definition, w)(x))(weights, jnp.ones((2, 3, 6)))
    readers = [str(eqn.primitive) for eqn in jaxpr.eqns if jaxpr.jaxpr.invars[0] in eqn.invars]
    assert readers in (["dot_general"], ["jit"]), jaxpr
