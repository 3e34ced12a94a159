"""The model and the batch that benchmarks train."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hetjax.graph import Edge, ModuleGraph
from hetjax.models import DecoderConfig, LanguageModel, VisionConfig, VisionEncoder
from hetjax.stages.batch import Batch
from hetjax.tools.random_batch import random_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A model and its batch: an encoder of some images a sample, and a language model over `rows` token positions."""

    vision: VisionConfig
    llm: DecoderConfig
    samples: int
    rows: int
    images: int = 1

    def graph(self) -> ModuleGraph:
        """Return the graph of the encoder into the language model."""
        modules = {
            "vision": lambda rngs: VisionEncoder(self.vision, rngs=rngs),
            "llm": lambda rngs: LanguageModel(self.llm, rngs=rngs),
        }
        return ModuleGraph(modules, [Edge("vision.tokens", "llm.image_tokens")])

    def batch(self) -> Batch:
        """Return a random batch."""
        side, rows = self.vision.image_size, (self.samples, self.rows)
        ids = jax.ShapeDtypeStruct(rows, jnp.int32)
        tokens = self.images * self.vision.tokens_per_image
        llm = {
            "tokens": ids,
            "labels": ids,
            "loss_weights": jax.ShapeDtypeStruct(rows, jnp.float32),
            "image_positions": jax.ShapeDtypeStruct((self.samples, tokens), jnp.int32),
        }
        images = jax.ShapeDtypeStruct((self.samples, self.images, side, side, self.vision.channels), jnp.float32)
        return random_batch({"vision": {"images": images}, "llm": llm}, vocab_size=self.llm.vocab_size)


def enough_devices(need: int) -> Sequence[jax.Device]:
    """Return the machine's devices, or CPU devices where it has too few."""
    if need > jax.config.jax_num_cpu_devices:
        jax.config.update("jax_num_cpu_devices", need)
    found = jax.devices()
    return found if len(found) >= need else jax.devices("cpu")
