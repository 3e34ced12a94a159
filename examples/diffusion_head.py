"""A diffusion head behind a language model, on a mesh of its own: python examples/diffusion_head.py

The language model predicts text, in two stages on four devices. A small network on four others denoises a picture given
what the language model made of the text (Ho et al. 2020; the linear path of Liu et al. 2023), and both train together.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import hetjax
from hetjax.meshes import Layout, Placement
from hetjax.models import DecoderConfig, LanguageModel

PIXELS, SEQUENCE, VOCABULARY, BATCH = 16, 8, 24, 32
LLM = DecoderConfig(vocab_size=VOCABULARY, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=64)


class DiffusionHead(nnx.Module):
    """Predicts, from a picture that is noise by a share of `time`, the way from the noise to the picture."""

    independent_samples = True

    def __init__(self, rngs: nnx.Rngs):
        self.condition = nnx.Linear(LLM.width, 64, rngs=rngs)
        self.noisy = nnx.Linear(PIXELS + 1, 64, rngs=rngs)
        self.layers = nnx.Sequential(nnx.Linear(64, 128, rngs=rngs), nnx.gelu, nnx.Linear(128, PIXELS, rngs=rngs))

    def __call__(self, features, pictures, noise, time):
        noisy = (1 - time) * pictures + time * noise
        # The last position has seen the whole text.
        hidden = self.condition(features[:, -1]) + self.noisy(jnp.concatenate([noisy, time], axis=1))
        squares = jnp.square(self.layers(nnx.gelu(hidden)) - (noise - pictures))
        return {"loss": jnp.sum(squares), "worst": hetjax.Mean(jnp.sum(jnp.max(squares, axis=1)), len(squares))}


def make_batch(random: np.random.Generator) -> dict:
    """Texts that count up from a first token, and the picture that belongs to that token."""
    gallery = np.random.default_rng(0).normal(size=(VOCABULARY, PIXELS))
    first = random.integers(0, VOCABULARY, (BATCH, 1))
    text = (first + np.arange(SEQUENCE + 1)) % VOCABULARY
    head = {
        "pictures": gallery[first[:, 0]],
        "noise": random.normal(size=(BATCH, PIXELS)),
        "time": random.random((BATCH, 1)),
    }
    llm = {"tokens": text[:, :-1], "labels": text[:, 1:], "loss_weights": np.ones((BATCH, SEQUENCE))}
    return {"llm": llm, "head": head, "loss_tokens": {"head": BATCH * PIXELS}}


def main(steps: int = 100) -> list[dict[str, float]]:
    graph = hetjax.ModuleGraph(
        {"llm": lambda rngs: LanguageModel(LLM, rngs=rngs), "head": DiffusionHead},
        [hetjax.Edge("llm.features", "head.features")],
        losses={"llm": 1.0, "head": 1.0},
    )
    placement = Placement({"llm": Layout(devices="0-3", stage=2, tensor=2), "head": Layout(devices="4-7", data=4)})
    trainer = hetjax.Trainer(graph, placement, optimizer=optax.adam(3e-3), microbatches=4, max_grad_norm=1.0)
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
