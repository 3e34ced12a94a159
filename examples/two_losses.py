"""One encoder with two tasks, each with a loss on a mesh of its own: python examples/two_losses.py

Patterns are classified, and how much ink each has is measured, where that is known: for every third of them. Each loss
is divided by its own count; the loss of a step is their weighted sum, and the encoder gets the gradient of both.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import hetjax
from hetjax.meshes import Layout, Placement

PIXELS, WIDTH, CLASSES, BATCH = 64, 48, 10, 48
WEIGHTS = {"digit": 1.0, "ink": 0.5}


class Encoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.Sequential(nnx.Linear(PIXELS, 96, rngs=rngs), nnx.gelu, nnx.Linear(96, WIDTH, rngs=rngs))

    def __call__(self, images):
        return {"features": nnx.gelu(self.layers(images))}


class Digit(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.out = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, features, labels):
        logits = self.out(features)
        loss = jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        right = jnp.sum(jnp.argmax(logits, axis=1) == labels)
        return {"loss": loss, "accuracy": hetjax.Mean(right, len(labels))}


class Ink(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.out = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, features, ink, loss_weights):
        distance = self.out(features)[:, 0] - ink
        known = jnp.sum(loss_weights)
        error = hetjax.Mean(jnp.sum(loss_weights * jnp.abs(distance)), known)
        return {"loss": jnp.sum(loss_weights * jnp.square(distance)), "error": error, "known": hetjax.Sum(known)}


def make_batch(random: np.random.Generator) -> dict:
    """Noisy copies of ten fixed patterns, some drawn with more ink than others."""
    patterns = np.random.default_rng(0).random((CLASSES, PIXELS)) < 0.3
    labels, ink = random.integers(0, CLASSES, BATCH), random.uniform(0.5, 1.5, BATCH)
    images = ink[:, None] * patterns[labels] + random.normal(scale=0.3, size=(BATCH, PIXELS))
    counted = {"ink": ink, "loss_weights": (np.arange(BATCH) % 3 == 0).astype(np.float32)}
    return {"encoder": {"images": images}, "digit": {"labels": labels}, "ink": counted, "loss_tokens": {"digit": BATCH}}


def main(steps: int = 100) -> list[dict[str, float]]:
    edges = [hetjax.Edge("encoder.features", "digit.features"), hetjax.Edge("encoder.features", "ink.features")]
    graph = hetjax.ModuleGraph({"encoder": Encoder, "digit": Digit, "ink": Ink}, edges, losses=WEIGHTS)
    half, rest = Layout(devices="0-3", data=4), Layout(devices="4-7", data=2, fsdp=2)
    placement = Placement({"encoder": half, "digit": rest, "ink": rest})
    trainer = hetjax.Trainer(graph, placement, optimizer=optax.adam(3e-3), microbatches=2)
    state, random, history = trainer.init(seed=0), np.random.default_rng(1), []
    for _ in range(steps):
        state, metrics = trainer.step(state, make_batch(random))
        history.append({name: float(value) for name, value in metrics.items()})
    return history


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)  # or eight GPUs
    for number, metrics in enumerate(main(), 1):
        if number % 10 == 0:
            print(f"step {number}:", ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
