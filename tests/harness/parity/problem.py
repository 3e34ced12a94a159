"""A model, a batch and an optimizer small enough to train in every layout."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import optax
from flax import nnx

from hetjax import Edge, ModuleGraph
from hetjax.models import DecoderConfig, LanguageModel, VisionConfig, VisionEncoder
from tests.harness.compile_quickly import quickly

STEPS = 3
MAX_GRAD_NORM = 0.5
SAMPLES, ROWS, VOCABULARY = 32, 12, 40

VISION = VisionConfig(
    image_size=8, patch_size=4, width=16, layers=2, heads=4, mlp_width=32, projector_width=32, output_width=24
)
LLM = DecoderConfig(vocab_size=VOCABULARY, width=24, layers=2, heads=4, kv_heads=2, head_dim=6, mlp_width=48)


@functools.cache
@quickly()
def make_graph(layers: int = 2) -> ModuleGraph:
    """An encoder into a language model, with weights: made once, since making random numbers compiles slowly."""
    llm = dataclasses.replace(LLM, layers=layers)
    modules = {"vision": VisionEncoder(VISION, rngs=nnx.Rngs(1)), "llm": LanguageModel(llm, rngs=nnx.Rngs(2))}
    return ModuleGraph(modules, [Edge("vision.tokens", "llm.image_tokens")])


def make_optimizer(*, small_gradients: bool = False) -> optax.GradientTransformation:
    """AdamW with an epsilon that keeps rounding noise in vanishing gradients from becoming full steps.

    Args:
        small_gradients: many gradients are small, as where they are shared out to experts.
    """
    return optax.adamw(1e-3, eps=3e-2 if small_gradients else 1e-3, weight_decay=0.1)


def make_batch(seed: int = 0):
    """Two images a sample, some of them padding, and from none to all positions of a sample in the loss."""
    random = np.random.default_rng(seed)
    images = random.normal(size=(SAMPLES, 2, 8, 8, 3)).astype(np.float32)
    positions = np.tile(np.arange(1, 9, dtype=np.int32), (SAMPLES, 1))
    positions[::3, 4:] = ROWS
    weights = (random.random((SAMPLES, ROWS)) < np.linspace(0, 1, SAMPLES)[:, None]).astype(np.float32)
    return {
        "vision": {"images": images},
        "llm": {
            "tokens": random.integers(0, VOCABULARY, (SAMPLES, ROWS)).astype(np.int32),
            "labels": random.integers(0, VOCABULARY, (SAMPLES, ROWS)).astype(np.int32),
            "loss_weights": weights,
            "image_positions": positions,
        },
    }
