import jax
import jax.numpy as jnp
import numpy as np

from models.parts.rope import rope_table, rotate


def test_rotation_is_complex_multiplication_of_channel_pairs(float64):
    x = np.random.default_rng(0).normal(size=(2, 7, 3, 8))
    positions = np.arange(7)[None] * np.array([[1], [5]])
    got = rotate(x, rope_table(positions, 8, 500.0, x.dtype))
    pairs = x[..., :4] + 1j * x[..., 4:]
    for i in range(4):
        pairs[..., i] *= np.exp(1j * positions * 500.0 ** (-2 * i / 8))[:, :, None]
    np.testing.assert_allclose(got, np.concatenate([pairs.real, pairs.imag], axis=-1), rtol=1e-12, atol=1e-13)


def test_scores_depend_on_relative_position_only(float64):
    rng = np.random.default_rng(1)
    query, key = np.broadcast_to(rng.normal(size=(2, 1, 1, 1, 16)), (2, 1, 50, 1, 16))

    def scores(offset):
        table = rope_table(jnp.arange(50)[None] + offset, 16, 10000.0, jnp.float64)
        return jnp.einsum("bshk,bthk->st", rotate(query, table), rotate(key, table))

    np.testing.assert_allclose(scores(0), scores(1234), rtol=1e-9, atol=1e-11)
    assert not np.allclose(scores(0)[0, 1:], scores(0)[0, :-1])


def test_angles_of_bfloat16_activations_are_float32():
    cos, sin = rope_table(jnp.array([[4097]]), 4, 10000.0, jnp.bfloat16)
    assert cos.dtype == sin.dtype == jnp.float32
    np.testing.assert_allclose(cos[0, 0, 0], np.cos([4097, 40.97]), atol=1e-4)
    assert rotate(jnp.ones((1, 1, 1, 4), jnp.bfloat16), (cos, sin)).dtype == jnp.bfloat16
    assert jax.dtypes.canonicalize_dtype(jnp.float64) == jnp.float32, "this test is of 32-bit mode"
