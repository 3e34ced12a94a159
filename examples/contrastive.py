"""Two encoders that learn which picture goes with which text, each on a mesh of its own: python examples/contrastive.py

The loss compares every picture with every text of the batch (Radford et al. 2021), over all shards of it. Microbatches
would change it, so the module says `compares_samples`, and a trainer with more than one is refused.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import hetjax
from hetjax.meshes import Layout, Placement

PIXELS, TOKENS, VOCABULARY, WIDTH, BATCH = 48, 6, 50, 32, 32


class ImageEncoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.Sequential(nnx.Linear(PIXELS, 64, rngs=rngs), nnx.gelu, nnx.Linear(64, WIDTH, rngs=rngs))

    def __call__(self, images):
        return {"features": self.layers(images)}


class TextEncoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(VOCABULARY, 64, rngs=rngs)
        self.layers = nnx.Sequential(nnx.Linear(TOKENS * 64, 64, rngs=rngs), nnx.gelu, nnx.Linear(64, WIDTH, rngs=rngs))

    def __call__(self, tokens):
        return {"features": self.layers(self.embedding(tokens).reshape(len(tokens), -1))}


class Contrast(nnx.Module):
    compares_samples = True

    def __init__(self, rngs: nnx.Rngs):
        self.log_scale = nnx.Param(jnp.log(10.0))

    def __call__(self, images, texts):
        images, texts = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
        logits = jnp.exp(self.log_scale[...]) * images @ texts.T
        pairs = jnp.arange(len(logits))
        losses = [optax.softmax_cross_entropy_with_integer_labels(each, pairs) for each in (logits, logits.T)]
        found = jnp.sum(jnp.argmax(logits, axis=1) == pairs)
        return {"loss": jnp.sum(sum(losses)) / 2, "matched": hetjax.Mean(found, len(logits))}


def make_batch(random: np.random.Generator) -> dict:
    """Texts of random tokens, and pictures that a fixed linear map makes of how often each token occurs."""
    camera = np.random.default_rng(0).normal(size=(VOCABULARY, PIXELS))
    tokens = random.integers(0, VOCABULARY, (BATCH, TOKENS))
    images = np.eye(VOCABULARY)[tokens].sum(axis=1) @ camera
    return {"images": {"images": images}, "texts": {"tokens": tokens}, "loss_tokens": BATCH}


def main(steps: int = 150) -> list[dict[str, float]]:
    graph = hetjax.ModuleGraph(
        {"images": ImageEncoder, "texts": TextEncoder, "contrast": Contrast},
        [hetjax.Edge("images.features", "contrast.images"), hetjax.Edge("texts.features", "contrast.texts")],
    )
    half, rest = Layout(devices="0-3", data=4), Layout(devices="4-7", data=4)
    placement = Placement({"images": half, "texts": rest, "contrast": rest})
    trainer = hetjax.Trainer(graph, placement, optimizer=optax.adam(3e-3))
    state, random, history = trainer.init(seed=0), np.random.default_rng(1), []
    for _ in range(steps):
        state, metrics = trainer.step(state, make_batch(random))
        history.append({name: float(value) for name, value in metrics.items()})
    return history


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)  # or eight GPUs
    for number, metrics in enumerate(main(), 1):
        if number % 10 == 0:
            print(f"step {number}: loss {metrics['loss']:.3f}, matched {metrics['contrast/matched']:.2f}")
