"""Tiny CLIP towers."""

import numpy as np
from flax import nnx

from hetjax.models import ClipConfig, ClipEncoder
from tests.harness.models.radio_cases import randomized

TINY = ClipConfig(
    image_size=16, patch_size=4, width=32, layers=2, heads=4, mlp_width=48, projector_width=24, output_width=24
)


def build(config=TINY, dtype=np.float32):
    return randomized(nnx.eval_shape(lambda: ClipEncoder(config, rngs=nnx.Rngs(0))), dtype)


def images(dtype=np.float32):
    """Two images for each of two samples."""
    return np.random.default_rng(4).normal(size=(2, 2, 16, 16, 3)).astype(dtype)
