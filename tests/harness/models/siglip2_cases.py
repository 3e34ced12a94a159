"""Tiny SigLIP 2 towers."""

import dataclasses

import numpy as np
from flax import nnx

from hetjax.models import Siglip2Config, Siglip2Encoder
from tests.harness.models.radio_cases import randomized

PACKED = Siglip2Config(
    patch_size=4,
    position_side=4,
    width=32,
    layers=2,
    heads=4,
    mlp_width=48,
    projector_width=40,
    output_width=24,
)
FIXED = dataclasses.replace(PACKED, image_size=18)
"""A rest of 2 pixels is not seen."""
GOLDEN = dataclasses.replace(PACKED, width=16, mlp_width=24, layers=1, projector_width=None, output_width=None)


def build(config, dtype=np.float32):
    return randomized(nnx.eval_shape(lambda: Siglip2Encoder(config, rngs=nnx.Rngs(0))), dtype)


def fixed_images(dtype=np.float32):
    return np.random.default_rng(4).normal(size=(2, 2, 18, 18, 3)).astype(dtype)
