"""Resample audio to the rate that encoders take."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32

# L samples at any rate · R at 16 kHz

SAMPLE_RATE = 16000
"""Samples a second that audio encoders take."""


def resampled(samples: Float32[np.ndarray, " L"], rate: int) -> Float32[np.ndarray, " R"]:
    """Resample samples taken `rate` times a second to 16 kHz, by a polyphase filter."""
    if rate == SAMPLE_RATE or not len(samples):
        return np.ascontiguousarray(samples, np.float32)
    shared = math.gcd(rate, SAMPLE_RATE)
    from scipy.signal import resample_poly  # only here: it takes a second to import

    return resample_poly(samples, SAMPLE_RATE // shared, rate // shared).astype(np.float32)
