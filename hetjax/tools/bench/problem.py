"""The model and the batch that benchmarks train."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hetjax.errors import ConfigError
from hetjax.graph import Edge, ModuleGraph
from hetjax.models import DecoderConfig, LanguageModel, VisionConfig, VisionEncoder
from hetjax.stages.batch import Batch
from hetjax.tools.random_batch import random_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A model and its batch: an encoder of `images` a sample, and a language model over `seq_len` tokens."""

    vision: VisionConfig
    llm: DecoderConfig
    samples: int
    seq_len: int
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
        side, shape = self.vision.image_size, (self.samples, self.seq_len)
        ids = jax.ShapeDtypeStruct(shape, jnp.int32)
        tokens = self.images * self.vision.tokens_per_image
        llm = {
            "tokens": ids,
            "labels": ids,
            "loss_weights": jax.ShapeDtypeStruct(shape, jnp.float32),
            "image_positions": jax.ShapeDtypeStruct((self.samples, tokens), jnp.int32),
        }
        images = jax.ShapeDtypeStruct((self.samples, self.images, side, side, self.vision.channels), jnp.float32)
        return random_batch({"vision": {"images": images}, "llm": llm}, vocab_size=self.llm.vocab_size)


def enough_devices(need: int) -> Sequence[jax.Device]:
    """Return the machine's devices, or CPU devices where it has too few. Raises ConfigError where both are too few."""
    if need > jax.config.jax_num_cpu_devices:
        with contextlib.suppress(RuntimeError):  # too late to make more up where JAX runs already
            jax.config.update("jax_num_cpu_devices", need)
    found = jax.devices()
    found = found if len(found) >= need else jax.devices("cpu")
    if len(found) < need:
        raise ConfigError(f"this benchmark takes {need} devices, but there are {len(found)}")
    return found
