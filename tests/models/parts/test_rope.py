import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.models.errors import ModelError
from hetjax.models.parts.rope import RopeScaling, rope_table, rotate


def test_rotation_is_complex_multiplication_of_channel_pairs(float64):
    x = np.random.default_rng(0).normal(size=(2, 7, 3, 8))
    positions = np.arange(7)[None] * np.array([[1], [5]])
    got = jax.jit(lambda x: rotate(x, rope_table(positions, 8, 500.0, x.dtype)))(x)
    pairs = x[..., :4] + 1j * x[..., 4:]
    for i in range(4):
        pairs[..., i] *= np.exp(1j * positions * 500.0 ** (-2 * i / 8))[:, :, None]
    np.testing.assert_allclose(got, np.concatenate([pairs.real, pairs.imag], axis=-1), rtol=1e-12, atol=1e-13)


def test_scores_depend_on_relative_position_only(float64):
    rng = np.random.default_rng(1)
    query, key = np.broadcast_to(rng.normal(size=(2, 1, 1, 1, 16)), (2, 1, 50, 1, 16))

    @jax.jit
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


def test_scaling_slows_channels_down_by_how_often_they_turn(float64):
    """As Llama 3.1 has it: by cases of a channel's wavelength."""
    scaling = RopeScaling(factor=8.0, low_turns=1.0, high_turns=4.0, original_length=64)
    cos, sin = rope_table(jnp.array([[1]]), 32, 500.0, jnp.float64, scaling)
    kinds = set()
    for i, angle in enumerate(np.arctan2(sin, cos)[0, 0, 0]):
        speed = 500.0 ** (-2 * i / 32)
        wavelength = 2 * np.pi / speed
        if wavelength < 64 / 4:
            kind, want = "kept", speed
        elif wavelength > 64 / 1:
            kind, want = "slowed", speed / 8
        else:
            smooth = (64 / wavelength - 1) / (4 - 1)
            kind, want = "between", (1 - smooth) * speed / 8 + smooth * speed
        kinds.add(kind)
        np.testing.assert_allclose(angle, want, rtol=1e-12)
    assert kinds == {"kept", "between", "slowed"}


def test_a_scaling_without_sense_is_refused():
    with pytest.raises(ModelError, match="factor = 0 must be positive"):
        RopeScaling(factor=0)
    with pytest.raises(ModelError, match=r"low_turns < high_turns must hold, but 4.0 >= 4.0"):
        RopeScaling(factor=2, low_turns=4.0)
