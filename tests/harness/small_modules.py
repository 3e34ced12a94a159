"""Modules as a user may write them, small and without any dim names unless they say so."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

IN, WIDTH, CLASSES = 6, 8, 4

# B batch · I features in · D width · C classes


class Encoder(nnx.Module):
    """[B, I] -> "features" [B, D], by two layers."""

    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(IN, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        return {"features": self.down(jnp.tanh(self.up(x)))}


class Head(nnx.Module):
    """Cross entropy of [B, D] with labels [B]; a second tensor and a shift by integers are optional."""

    def __init__(self, rngs: nnx.Rngs):
        self.mix = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, features, labels, skip=None, shift=None):
        hidden = jnp.tanh(self.mix(features))
        hidden = hidden if skip is None else hidden + skip
        labels = labels if shift is None else (labels + shift) % CLASSES
        logits = jax.nn.log_softmax(self.out(hidden))
        return {"loss": -jnp.sum(jnp.take_along_axis(logits, labels[:, None], axis=1))}


class Middle(nnx.Module):
    """[B, D] -> [B, D] as a bare array, the port "output"."""

    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, features, extra=None):
        return jnp.sin(self.linear(features if extra is None else features + extra))


class Vote(nnx.Module):
    """[B, D] -> an integer a sample; nothing in it trains."""

    def __init__(self, rngs: nnx.Rngs):
        del rngs

    def __call__(self, features):
        return {"winner": jnp.argmax(features, axis=-1)}


class Noisy(nnx.Module):
    """[B, I] -> "features" [B, D] through batch statistics and dropout, both of which carry state."""

    def __init__(self, rngs: nnx.Rngs):
        # Without a bias, whose gradient the batch statistics cancel to rounding noise.
        self.linear = nnx.Linear(IN, WIDTH, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, momentum=0.7, rngs=rngs)
        self.dropout = nnx.Dropout(0.4, rngs=rngs)

    def __call__(self, x):
        return {"features": self.dropout(jnp.tanh(self.norm(self.linear(x))))}


class Tower(nnx.Module):
    """Stacked layers with dim names that can be cut into stages: [B, D] and labels [B] -> "loss"."""

    def __init__(self, rngs: nnx.Rngs, *, layers: int = 4):
        @nnx.split_rngs(splits=layers)
        @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def make(rngs):
            return nnx.Linear(WIDTH, WIDTH, use_bias=False, kernel_init=_named("embed", "mlp"), rngs=rngs)

        self.layers = make(rngs)
        self.out = nnx.Linear(WIDTH, CLASSES, kernel_init=_named("embed", "vocab"), rngs=rngs)
        self.input_ports = ("features", "labels")
        self.optional_ports = ()

    def __call__(self, features=None, hidden=None, labels=None):
        definition, stacked = nnx.split(self.layers)
        hidden = features if hidden is None else hidden

        def step(x, layer):
            return x + jnp.tanh(nnx.merge(definition, layer)(x)), None

        hidden, _ = jax.lax.scan(step, hidden, stacked)
        if labels is None:
            return {"hidden": hidden}
        logits = jax.nn.log_softmax(self.out(hidden))
        return {"loss": -jnp.sum(jnp.take_along_axis(logits, labels[:, None], axis=1))}

    def stage(self, index: int, count: int) -> Tower:
        """Layers of one stage, cut in place; the last also has the head."""
        part = nnx.merge(*nnx.split(self))
        size = part.layers.kernel[...].shape[0] // count
        part.layers.kernel.set_value(part.layers.kernel[...][index * size : (index + 1) * size])
        last = index == count - 1
        if not last:
            del part.out
        part.input_ports = ("hidden" if index else "features", *(("labels",) if last else ()))
        return part


def _named(*dims):
    return nnx.with_metadata(nnx.initializers.lecun_normal(), out_sharding=dims, eager_sharding=False)
