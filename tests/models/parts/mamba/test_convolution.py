"""The causal convolution and the gated norm against loops over rows in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hetjax.models.kernels.causal_conv import causal_conv, ids_from, starts_from
from hetjax.models.parts.mamba.convolution import CausalConv
from hetjax.models.parts.mamba.gated_norm import GatedNorm
from tests.harness.models.arrays import with_arrays
from tests.harness.models.mamba_stepwise import convolution, documents, gated_norm

BATCH, TAPS = 2, 4


def arrays(length: int, *channels: int):
    rng = np.random.default_rng(length)
    x, before = rng.normal(size=(BATCH, length, *channels)), rng.normal(size=(BATCH, TAPS - 1, *channels))
    return x, before, rng.normal(size=(TAPS, *channels)), rng.normal(size=channels)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [1, 3, 10])
def test_convolution_equals_a_loop_over_rows(float64, length, packed):
    x, before, kernel, bias = arrays(length, 3, 2)
    segments = documents(np.random.default_rng(0), BATCH, length) if packed else None
    ids = None if segments is None else ids_from(segments, TAPS)
    y = causal_conv(*map(jnp.asarray, (x, before, kernel, bias)), ids)
    np.testing.assert_allclose(y, convolution(x, kernel, bias, segments, before), rtol=1e-13, atol=1e-13)


def test_a_document_starts_where_the_id_changes():
    segments = jnp.array([[5, 5, 5, 2, 5, 5], [1, 2, 3, 3, 3, 3]])
    starts = starts_from(ids_from(segments, TAPS), TAPS)
    np.testing.assert_array_equal(starts, [[0, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0]])


def test_a_first_row_with_an_id_of_its_own_sees_nothing_before_it(float64):
    x, before, kernel, bias = arrays(3, 2)
    ids = jnp.array([[1, 1, 1, 2, 2, 2], [1, 1, 2, 2, 2, 2]])
    y = causal_conv(*map(jnp.asarray, (x, before, kernel, bias)), ids)
    np.testing.assert_allclose(y[0], convolution(x[:1], kernel, bias)[0], rtol=1e-13)
    one_before = np.concatenate([np.zeros((1, TAPS - 2, 2)), before[1:, -1:]], axis=1)
    np.testing.assert_allclose(y[1], convolution(x[1:], kernel, bias, None, one_before)[0], rtol=1e-13)


def test_bfloat16_rows_are_added_up_in_float32():
    ones = jnp.ones((1, 1, 1), jnp.bfloat16)
    kernel = jnp.array([0, 0, 1.0, 256.0], jnp.bfloat16)[:, None]
    y = causal_conv(ones, jnp.ones((1, 3, 1), jnp.bfloat16), kernel, jnp.array([1.0], jnp.bfloat16))
    # 256 + 1 + 1; in bfloat16, 256 + 1 is 256.
    assert (y.dtype, y.item()) == (jnp.bfloat16, 258)


def test_kernel_and_bias_are_drawn_between_the_bounds():
    with nnx.use_eager_sharding(False):
        conv = CausalConv(TAPS, {"heads": 64, "head_dim": 8}, rngs=nnx.Rngs(0))
    for drawn in (conv.kernel[...], conv.bias[...]):
        assert np.abs(drawn).max() <= 0.5
        assert np.std(drawn) == pytest.approx(0.5 / np.sqrt(3), rel=0.1)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gated_norm_equals_numpy(float64, groups):
    rng = np.random.default_rng(1)
    y, z, scale = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(4, 5))
    with nnx.use_eager_sharding(False):
        norm = GatedNorm(4, 5, groups, epsilon=1e-2, rngs=nnx.Rngs(0))
    got = with_arrays(norm, {"scale": jnp.asarray(scale)})(jnp.asarray(y), jnp.asarray(z))
    np.testing.assert_allclose(got, gated_norm(y, z, scale, groups, 1e-2), rtol=1e-13)


def test_gated_norm_takes_its_statistics_in_float32():
    with nnx.use_eager_sharding(False):
        norm = GatedNorm(64, 16, 1, epsilon=1e-5, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(2)
    y, z = (jnp.asarray(rng.normal(size=(1, 2, 64, 16)), jnp.bfloat16) for _ in range(2))
    got = with_arrays(norm, {"scale": jnp.ones((64, 16), jnp.bfloat16)})(y, z)
    assert got.dtype == jnp.bfloat16
    want = gated_norm(*(np.asarray(each, np.float64) for each in (y, z)), np.ones((64, 16)), 1, 1e-5)
    # One rounding to 8 bits.
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2**-8)


def test_norm_and_convolution_keep_their_arguments_alone():
    y, z, scale = (jnp.ones(shape) for shape in ((2, 8, 4, 5), (2, 8, 4, 5), (4, 5)))
    with nnx.use_eager_sharding(False):
        norm = GatedNorm(4, 5, 2, epsilon=1e-5, rngs=nnx.Rngs(0))
    kept = jax.tree.leaves(jax.vjp(norm, y, z)[1])
    assert sum(leaf.size for leaf in kept) <= y.size + z.size + scale.size
    x = jnp.ones((2, 8, 6))
    kept = jax.tree.leaves(jax.vjp(causal_conv, x, jnp.ones((2, 3, 6)), jnp.ones((4, 6)), jnp.ones(6))[1])
    assert sum(leaf.size for leaf in kept) <= x.size + 2 * 3 * 6 + 4 * 6 + 6
