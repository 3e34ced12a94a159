"""Small models and batches for the tests of this folder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax.models import DecoderConfig, LanguageModel, VisionConfig, VisionEncoder

DECODER = DecoderConfig(vocab_size=48, width=32, layers=4, heads=4, kv_heads=2, head_dim=8, mlp_width=40)
VISION = VisionConfig(
    image_size=8, patch_size=4, width=24, layers=4, heads=2, mlp_width=36, projector_width=28, output_width=32
)
BATCH, SEQ, IMAGES = 4, 12, 2


def build_decoder(config=DECODER):
    return _build(LanguageModel, config, np.float32)


def build_vision(config=VISION):
    return _build(VisionEncoder, config, np.float32)


def cast(model, dtype):
    """The model with all weights in `dtype`."""
    definition, weights = nnx.split(model)
    return nnx.merge(definition, jax.tree.map(lambda weight: jnp.asarray(np.asarray(weight).astype(dtype)), weights))


def _build(kind, config, dtype):
    definition, weights = _initialized(kind, config)
    return cast(nnx.merge(definition, weights), dtype)


@functools.cache
def _initialized(kind, config):
    """Built once, in one program: op by op, initializers take seconds."""
    definition, weights = nnx.split(nnx.jit(lambda: kind(config, rngs=nnx.Rngs(0)))())
    return definition, jax.tree.map(np.asarray, weights)


@nnx.jit
def call(model, **inputs):
    """The outputs of a model, jitted."""
    return model(**inputs)


def decoder_batch(dtype=np.float32):
    """Inputs of the whole decoder; the last image token of each sample is padding, the last token of sample 0 too."""
    rng = np.random.default_rng(7)
    weights = rng.uniform(0.5, 1.5, (BATCH, SEQ))
    weights[0, -1] = 0
    return {
        "tokens": rng.integers(0, DECODER.vocab_size, (BATCH, SEQ)),
        "labels": rng.integers(0, DECODER.vocab_size, (BATCH, SEQ)),
        "loss_weights": weights.astype(dtype),
        "image_tokens": rng.normal(size=(BATCH, 4, DECODER.width)).astype(dtype),
        "image_positions": np.array([[1, 2, 3, SEQ], [0, 4, 5, SEQ + 3], [2, 3, 9, SEQ], [1, 3, 5, SEQ]]),
    }


def image_batch(dtype=np.float32):
    return np.random.default_rng(8).normal(size=(BATCH, IMAGES, 8, 8, 3)).astype(dtype)


def flat(state):
    """{path: array} of a state."""
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def relative_error(got, want):
    got, want = np.asarray(got), np.asarray(want)
    return float(np.abs(got - want).max() / max(np.abs(want).max(), jnp.finfo(want.dtype).tiny))
