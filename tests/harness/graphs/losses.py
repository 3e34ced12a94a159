"""A graph of several losses: a tower that is cut into stages and returns one, heads beside and behind it, metrics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import hetjax
from hetjax import Edge, ModuleGraph
from tests.harness.small_modules import CLASSES, IN, WIDTH, Encoder, Tower

# B batch · D width · C classes
SAMPLES = 24
LOSSES = {"llm": 1.0, "probe": 0.25, "behind": -0.5}


def results(logits: jax.Array, labels: jax.Array, loss_weights: jax.Array) -> dict:
    """The weighted cross entropy of [B, C], and metrics of each kind."""
    log_probabilities = jax.nn.log_softmax(logits)
    right = jnp.argmax(logits, axis=1) == labels
    chosen = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]
    return {
        "loss": -jnp.sum(loss_weights * chosen),
        "accuracy": hetjax.Mean(jnp.sum(loss_weights * right), jnp.sum(loss_weights)),
        "norm": hetjax.Mean(jnp.sum(jnp.square(logits)), len(logits)),
        "right": hetjax.Sum(jnp.sum(right)),
    }


class Eye(Encoder):
    """An encoder whose samples do not see each other."""

    independent_samples = True


class WeighedHead(nnx.Module):
    """[B, D] -> a loss and metrics, sample by sample."""

    independent_samples = True

    def __init__(self, rngs: nnx.Rngs):
        self.out = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, features, labels, loss_weights):
        return results(self.out(jnp.sin(features)), labels, loss_weights)


class LossTower(Tower):
    """A tower of layers with a loss, metrics, and what is behind its layers for a head of its own."""

    def __init__(self, rngs: nnx.Rngs):
        super().__init__(rngs)
        self.input_ports = ("features", "labels", "loss_weights")

    def __call__(self, features=None, hidden=None, labels=None, loss_weights=None):
        found = super().__call__(features=features, hidden=hidden)["hidden"]
        if labels is None:
            return {"hidden": found}
        return {**results(self.out(found), labels, loss_weights), "features": found}

    def stage(self, index: int, count: int) -> LossTower:
        """Cut it; the loss is of the last part."""
        part = super().stage(index, count)
        last = ("labels", "loss_weights") if index == count - 1 else ()
        part.input_ports = ("hidden" if index else "features", *last)
        return part


def make_graph(*, gradient: bool = True) -> ModuleGraph:
    """The encoder feeds the tower and a probe, the tower a head behind it, which gives it a gradient or none."""
    kinds = {"eye": Eye, "llm": LossTower, "probe": WeighedHead, "behind": WeighedHead}
    modules = {name: kind(nnx.Rngs(seed)) for seed, (name, kind) in enumerate(kinds.items())}
    edges = [
        Edge("eye.features", "llm.features"),
        Edge("eye.features", "probe.features"),
        Edge("llm.features", "behind.features", gradient=gradient),
    ]
    return ModuleGraph(modules, edges, losses=LOSSES)


def make_batch(seed: int = 0):
    """Each loss has labels and weights of its own, few of them in the first microbatches."""
    random = np.random.default_rng(seed)
    batch = {"eye": {"x": random.normal(size=(SAMPLES, IN))}}
    for place, module in enumerate(LOSSES):
        weights = random.random(SAMPLES) * (random.random(SAMPLES) < np.linspace(0.1, 1, SAMPLES)) * (1 + place)
        labels = random.integers(0, CLASSES, SAMPLES).astype(np.int32)
        batch[module] = {"labels": labels, "loss_weights": weights}
    return batch


def counts(batch) -> dict[str, float]:
    return {module: float(np.sum(batch[module]["loss_weights"])) for module in LOSSES}
