"""Two towers of layers joined in the middle: the first is read behind each of its layers, the second reads in each."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax import Edge, ModuleGraph
from hetjax.models.stages import even_layers

# B batch · D width · C classes
WIDTH, CLASSES, LAYERS, SAMPLES = 8, 4, 4, 24
TAPS = tuple(f"tap_{layer}" for layer in range(LAYERS))


class TappedTower(nnx.Module):
    """Layers of [B, D]; by kind the first tower, which gives what is behind each layer, or the second, which adds it.

    Args:
        reads: whether the layers read taps and a loss ends the tower.
        taps: the layers that are read, or that read.
    """

    def __init__(self, rngs: nnx.Rngs, *, reads: bool, taps: tuple[int, ...] = tuple(range(LAYERS))):
        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def make(rngs):
            return nnx.Linear(WIDTH, WIDTH, use_bias=False, kernel_init=_named("embed", "mlp"), rngs=rngs)

        self.layers = make(rngs)
        if reads:
            self.out = nnx.Linear(WIDTH, CLASSES, kernel_init=_named("embed", "vocab"), rngs=rngs)
        self.reads, self.taps = reads, taps
        self.index, self.count, self.start, self.size = 0, 1, 0, LAYERS

    @property
    def _own(self) -> tuple[int, ...]:
        stop = self.start + self.size
        return tuple(layer for layer in self.taps if self.start <= layer < stop)

    @property
    def input_ports(self) -> tuple[str, ...]:
        entry = ("x",) if self.index == 0 else ("hidden",)
        loss = ("labels",) if self.reads and self.index == self.count - 1 else ()
        return entry + (tuple(TAPS[layer] for layer in self._own) if self.reads else ()) + loss

    @property
    def output_ports(self) -> tuple[str, ...]:
        last = ("tokens",) if not self.reads and self.index == self.count - 1 else ()
        return last + (() if self.reads else tuple(TAPS[layer] for layer in self._own))

    optional_ports = ()

    def __call__(self, x=None, hidden=None, labels=None, **taps):
        x, outputs = x if hidden is None else hidden, {}
        for place in range(self.size):
            x = x + jnp.tanh(x @ self.layers.kernel[...][place])
            if self.start + place not in self.taps:
                continue
            if self.reads:
                x = x + jnp.sin(taps[TAPS[self.start + place]])
            else:
                outputs[TAPS[self.start + place]] = x * (1 + self.start + place)
        if self.index < self.count - 1:
            return {**outputs, "hidden": x}
        if not self.reads:
            return {**outputs, "tokens": x}
        logits = jax.nn.log_softmax(self.out(x))
        return {"loss": -jnp.sum(jnp.take_along_axis(logits, labels[:, None], axis=1))}

    def stage(self, index: int, count: int) -> TappedTower:
        """Cut the layers; the last part of the second tower also has the head."""
        part = nnx.merge(*nnx.split(self))
        counts = even_layers(LAYERS, count)
        part.index, part.count, part.start, part.size = index, count, sum(counts[:index]), counts[index]
        part.layers.kernel.set_value(part.layers.kernel[...][part.start : part.start + part.size])
        if self.reads and index < count - 1:
            del part.out
        return part


def make_graph(taps: tuple[int, ...] = tuple(range(LAYERS)), *, gradient: bool = True) -> ModuleGraph:
    """Edges from behind each layer of the first tower into the same layer of the second, and from end to start."""
    modules = {
        "eye": TappedTower(nnx.Rngs(1), reads=False, taps=taps),
        "llm": TappedTower(nnx.Rngs(2), reads=True, taps=taps),
    }
    inner = [Edge(f"eye.{TAPS[layer]}", f"llm.{TAPS[layer]}", gradient=gradient) for layer in taps]
    return ModuleGraph(modules, [Edge("eye.tokens", "llm.x"), *inner])


def make_batch(seed: int = 0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(SAMPLES, WIDTH))
    labels = random.integers(0, CLASSES, SAMPLES).astype(np.int32)
    return {"eye": {"x": x}, "llm": {"labels": labels}, "loss_tokens": SAMPLES}


def _named(*dims):
    return nnx.with_metadata(nnx.initializers.lecun_normal(), out_sharding=dims, eager_sharding=False)
