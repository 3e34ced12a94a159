"""Compute log-mel features of audio as the encoders of NeMo take them, in JAX, so that they can be differentiated.

With x the samples, e[t] = x[t] - 0.97 x[t-1], and X_f the spectrum of 512 bins of frame f, 400 samples of e around
160 f under a Hann window:

    m[f, b] = log(sum over k of filter[b, k] |X_f[k]|² + 2^-24)
    features[f, b] = (m[f, b] - mean_b) / (std_b + 1e-5)

with mean and std (that of a sample, over F - 1) over the F = samples // 160 valid frames of the clip. The filters are
triangles that have equal areas, equally far from each other on the mel scale of Slaney's Auditory Toolbox (1998).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hetjax.models.errors import ModelError
from hetjax.models.parts.audio_clips import HOP, SAMPLE_RATE, frames_of_clip

# T samples of the longest clip · F frames of it = T // 160 · M mel bins · K bins of the spectrum = 257

PREEMPHASIS = 0.97
WINDOW = 400
FFT = 512
GUARD = 2.0**-24
EPSILON = 1e-5


def log_mel(
    waveforms: Float[Array, "*clips T"], lengths: Int[Array, "*clips"], bins: int
) -> Float[Array, "*clips F M"]:
    """Return normalized features of each clip, float32 at least; frames past a clip's own are 0.

    `lengths` are the valid samples of each clip; what comes after them is not read. A bin that does not change over
    a clip, as in silence, becomes 0.
    """
    if not jnp.issubdtype(waveforms.dtype, jnp.floating):
        raise ModelError(f"log_mel: waveforms are {waveforms.dtype}; give floats, full scale being -1 to 1")
    waveforms = waveforms.astype(jnp.promote_types(waveforms.dtype, jnp.float32))
    powers = _powers(_emphasized(waveforms, lengths))
    filters = jnp.asarray(mel_filters(bins), powers.dtype)
    # Full precision: a bin's change over time may be far smaller than the bin.
    mel = jnp.einsum("...fk,mk->...fm", powers, filters, precision=jax.lax.Precision.HIGHEST)
    return _normalized(jnp.log(mel + GUARD), frames_of_clip(lengths))


def _emphasized(x: Float[Array, "*clips T"], lengths: Int[Array, "*clips"]) -> Float[Array, "*clips T"]:
    """x[t] - 0.97 x[t-1], and 0 past each clip's end."""
    before = jnp.pad(x[..., :-1], [(0, 0)] * (x.ndim - 1) + [(1, 0)])
    valid = jnp.arange(x.shape[-1]) < lengths[..., None]
    return jnp.where(valid, x - PREEMPHASIS * before, 0)


def _powers(x: Float[Array, "*clips T"]) -> Float[Array, "*clips F K"]:
    """|spectrum|² of the frames around 0, 160, 320, ... samples."""
    frames = frames_of_clip(x.shape[-1])
    # Frame f has the samples 160 f - 200 to 160 f + 199: what lies in three hops from there on.
    hops = -(-WINDOW // HOP)
    end = (frames + hops - 1) * HOP - WINDOW // 2
    sides = [(0, 0)] * (x.ndim - 1) + [(WINDOW // 2, max(0, end - x.shape[-1]))]
    padded = jnp.pad(x, sides)[..., : (frames + hops - 1) * HOP]
    blocks = padded.reshape(*x.shape[:-1], -1, HOP)
    pieces = jnp.concatenate([blocks[..., hop : hop + frames, :] for hop in range(hops)], axis=-1)
    window = jnp.asarray(np.hanning(WINDOW), x.dtype)
    spectrum = jnp.fft.rfft(pieces[..., :WINDOW] * window, n=FFT)
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def _normalized(mel: Float[Array, "*clips F M"], frames: Int[Array, "*clips"]) -> Float[Array, "*clips F M"]:
    """Mean 0 and deviation 1 of each bin over a clip's frames."""
    valid = (jnp.arange(mel.shape[-2]) < frames[..., None])[..., None]
    count = frames[..., None, None].astype(mel.dtype)
    mean = jnp.where(valid, mel, 0).sum(axis=-2, keepdims=True) / jnp.maximum(count, 1)
    centred = jnp.where(valid, mel - mean, 0)
    variance = jnp.square(centred).sum(axis=-2, keepdims=True) / jnp.maximum(count - 1, 1)
    # A root has no slope at 0, where padding clips are.
    deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    return centred / (deviation + EPSILON)


@functools.cache
def mel_filters(bins: int) -> Float[np.ndarray, "M K"]:
    """Return triangular filters over the 257 bins of the spectrum, from 0 to 8000 Hz, float64."""
    edges = _hertz(np.linspace(_mel(0.0), _mel(SAMPLE_RATE / 2), bins + 2))
    frequencies = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - low) / (peak - low), (high - frequencies) / (high - peak)
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)


# Linear up to 1000 Hz, 3 mel each 200 Hz; from there on each mel is a factor of 6.4^(1/27).
_KNEE, _MEL_A_HERTZ, _STEP = 1000.0, 3 / 200, np.log(6.4) / 27


def _mel(hertz: float) -> float:
    linear = hertz * _MEL_A_HERTZ
    return linear if hertz < _KNEE else _KNEE * _MEL_A_HERTZ + np.log(hertz / _KNEE) / _STEP


def _hertz(mel: Float[np.ndarray, " edges"]) -> Float[np.ndarray, " edges"]:
    knee = _KNEE * _MEL_A_HERTZ
    return np.where(mel < knee, mel / _MEL_A_HERTZ, _KNEE * np.exp(_STEP * (np.maximum(mel, knee) - knee)))
