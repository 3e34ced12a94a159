"""Tiny RADIO encoders, and images and videos for them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax.models import RadioConfig, RadioEncoder
from hetjax.models.arrays import arrays_by_path
from tests.harness.models.arrays import with_arrays

TINY = RadioConfig(
    patch_size=4, width=32, layers=2, heads=4, mlp_width=64, position_side=8, projector_width=40, output_width=24
)
GOLDEN = dataclasses.replace(TINY, width=16, mlp_width=24, position_side=6, projector_width=20, output_width=12)
GRIDS = ((4, 6), (2, 2), (8, 6), (6, 12), (2, 10))
"""Below, at and above the side of the learned grid, in both aspects."""


def images(grids=GRIDS, *, side=4, seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    return [random.normal(size=(height * side, width * side, 3)).astype(dtype) for height, width in grids]


def video(frames, grid=(4, 6), *, side=4, seed=1, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(frames, grid[0] * side, grid[1] * side, 3)).astype(dtype)


def image_inputs(config, samples, rows):
    """(inputs of the encoder, the tokens of each image by sample); `samples` are lists of images."""
    packed = [config.image_rows.pack_images(sample, rows) for sample in samples]
    names = ("patches", "places", "segments")
    return {name: np.stack([getattr(rows, name) for rows in packed]) for name in names}, [
        each.tokens for each in packed
    ]


def video_inputs(config, samples, rows):
    """The same for lists of videos."""
    packed = [config.video_rows.pack_videos(sample, rows) for sample in samples]
    names = ("patches", "places", "segments")
    inputs = {f"video_{name}": np.stack([getattr(rows, name) for rows in packed]) for name in names}
    return inputs, [each.tokens for each in packed]


def build(config=TINY, *, dtype=np.float32, seed=3):
    """An encoder none of whose weights is at its start: biases and norms are random, too."""
    return randomized(nnx.eval_shape(lambda: RadioEncoder(config, rngs=nnx.Rngs(0))), dtype, seed)


def randomized(abstract, dtype, seed=3):
    """A model of these shapes with random weights."""
    random = np.random.default_rng(seed)
    arrays = {
        path: jnp.asarray(path.endswith("scale") + 0.2 * random.normal(size=shape.shape), dtype)
        for path, shape in arrays_by_path(abstract).items()
    }
    return with_arrays(abstract, arrays)
