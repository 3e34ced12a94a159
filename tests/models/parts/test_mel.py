"""The log-mel front end against numpy, one frame and one bin at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.models.parts.mel import log_mel, mel_filters
from tests.harness.models.tiny_models import relative_error


def in_numpy(sound, filters):
    """Features of one clip, from a discrete Fourier transform written out."""
    emphasized = sound - 0.97 * np.concatenate([[0], sound[:-1]])
    padded = np.pad(emphasized, 256)
    window = np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399), 56)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(512)) / 512)
    frames = [padded[start : start + 512] * window for start in range(0, len(sound) // 160 * 160, 160)]
    mel = np.log(np.stack([filters @ np.abs(waves @ frame) ** 2 for frame in frames]) + 2**-24)
    return (mel - mel.mean(0)) / (mel.std(0, ddof=1) + 1e-5)


@pytest.mark.parametrize("lengths", [(1600,), (1601, 999), (480, 1759)])
def test_features_equal_numpy(float64, lengths):
    waveforms = np.random.default_rng(0).normal(size=(len(lengths), max(lengths)))
    got = jax.jit(log_mel, static_argnums=2)(waveforms, np.array(lengths), 16)
    assert got.dtype == jnp.float64 and got.shape == (len(lengths), max(lengths) // 160, 16)
    for own, sound, length in zip(got, waveforms, lengths, strict=True):
        frames = length // 160
        assert relative_error(own[:frames], in_numpy(sound[:length], mel_filters(16))) < 1e-10
        assert not own[frames:].any()


def test_filters_are_triangles_of_equal_area_in_hertz():
    filters = mel_filters(16)
    areas = filters.sum(axis=1) * 8000 / 256
    np.testing.assert_allclose(areas, 1, atol=0.1)
    peaks = filters.argmax(axis=1) * 8000 / 256
    # Slaney's scale is linear up to 1000 Hz, and a geometric series from there on.
    low, high = peaks[peaks < 900], peaks[peaks > 1500]
    assert np.ptp(np.diff(low)) <= 2 * 8000 / 256
    np.testing.assert_allclose(high[1:] / high[:-1], (high[-1] / high[0]) ** (1 / (len(high) - 1)), rtol=0.05)


def test_half_precision_is_worked_on_in_float32():
    sound = np.random.default_rng(0).normal(size=(1, 1600)).astype(np.float16)
    got = log_mel(jnp.asarray(sound), jnp.array([1600]), 16)
    assert got.dtype == jnp.float32
    assert relative_error(got, log_mel(jnp.asarray(sound, jnp.float32), jnp.array([1600]), 16)) == 0


def test_gradients_equal_differences(float64):
    random = np.random.default_rng(0)
    sound, direction = random.normal(size=(2, 1, 800))
    weights = random.normal(size=(1, 5, 16))
    objective = jax.jit(lambda x: jnp.sum(weights * log_mel(x, jnp.array([800]), 16)))
    step = 1e-6
    difference = (objective(sound + step * direction) - objective(sound - step * direction)) / (2 * step)
    assert relative_error(jnp.vdot(jax.grad(objective)(sound), direction), difference) < 1e-5


@pytest.mark.parametrize("length", [0, 100, 160, 320])
def test_short_and_silent_clips_have_finite_gradients(length):
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(log_mel(x, jnp.array([length]), 16))))(jnp.zeros((1, 320)))
    assert np.isfinite(gradient).all()
