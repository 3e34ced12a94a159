"""A problem for optimizers: every one on one device as plain optax, and by trainers on placements."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.meshes import Layout, Placement
from hetjax.stages.flat_state import flatten_module
from tests.harness.parity.oracle import relative_error
from tests.harness.small_modules import CLASSES, IN, Encoder, Tower

SAMPLES, STEPS, LAYERS = 16, 3, 4
STACKED = {"layers/kernel": LAYERS}
"""The weights whose layers are stacked, and how many these are."""


@functools.cache
def make_graph() -> ModuleGraph:
    """An encoder without any dim names into a tower of four stacked layers and a head."""
    modules = {"encoder": Encoder(nnx.Rngs(1)), "tower": Tower(nnx.Rngs(2), layers=LAYERS)}
    return ModuleGraph(modules, [Edge("encoder.features", "tower.features")])


def make_batch():
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, SAMPLES).astype(np.int32)
    return {"encoder": {"x": random.normal(size=(SAMPLES, IN))}, "tower": {"labels": labels}, "loss_tokens": SAMPLES}


class Placed(NamedTuple):
    encoder: Layout
    tower: Layout
    microbatches: int = 1


PLACEMENTS = {
    "one-device": Placed(Layout(devices="0"), Layout(devices="0")),
    "disjoint": Placed(Layout(devices="0-3", data=4), Layout(devices="4-7", fsdp=2, tensor=2)),
    "colocated": Placed(Layout(data=8), Layout(data=2, fsdp=2, tensor=2)),
    "homogeneous": Placed(Layout(data=4, tensor=2), Layout(data=4, tensor=2)),
    "stages": Placed(Layout(devices="0-3", fsdp=4), Layout(devices="0-7", stage=4, fsdp=2)),
    "microbatches": Placed(Layout(devices="0-1", data=2), Layout(devices="2-5", stage=2, tensor=2), microbatches=4),
}


def make_trainer(optimizer, placed: Placed, **options) -> Trainer:
    layouts = {"encoder": placed.encoder, "tower": placed.tower}
    options = {"param_dtype": "float64", "compute_dtype": "float64", "microbatches": placed.microbatches, **options}
    return Trainer(make_graph(), Placement(layouts), optimizer=optimizer, **options)


def train(trainer: Trainer, steps: int = STEPS):
    """The trainer's weights after some steps."""
    state = trainer.init()
    for _ in range(steps):
        state, _ = trainer.step(state, make_batch())
    return trainer.weights(state)


@functools.cache
def _one_device():
    """(first weights, a function from weights to (loss, gradients)), of unstacked layers."""
    graph = make_graph()
    apart = {name: flatten_module(graph.build(name, 0)) for name in graph.modules}
    batch = jax.tree.map(jnp.asarray, make_batch())

    def loss_of(weights):
        weights = {name: stacked(own) for name, own in weights.items()}
        features = apart["encoder"][0].assemble(weights["encoder"], {})(**batch["encoder"])["features"]
        tower = apart["tower"][0].assemble(weights["tower"], {})
        return tower(features=features, **batch["tower"])["loss"] / SAMPLES

    return {name: unstacked(params) for name, (_, params, _) in apart.items()}, jax.jit(jax.value_and_grad(loss_of))


def gradients_on_one_device():
    """(loss, gradients) of the first weights, as of one device."""
    weights, gradient_of = _one_device()
    loss, gradients = gradient_of(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), weights))
    return float(loss), {name: stacked(own, np.stack) for name, own in jax.device_get(gradients).items()}


def train_on_one_device(optimizer, *, frozen: str | None = None, steps: int = STEPS):
    """Weights after some steps of plain optax, each layer's weight an array of its own."""
    weights, gradient_of = _one_device()
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), weights)
    kept = {name: weights.pop(name) for name in [frozen] if name}
    state = jax.jit(optimizer.init)(weights)
    optimizer = optax.with_extra_args_support(optimizer)

    @jax.jit
    def update(loss, gradients, state, weights):
        updates, state = optimizer.update(gradients, state, weights, value=loss)
        return optax.apply_updates(weights, updates), state

    for _ in range(steps):
        loss, gradients = gradient_of({**weights, **kept})
        weights, state = update(loss, {name: gradients[name] for name in weights}, state, weights)
    return {name: stacked(own, np.stack) for name, own in jax.device_get({**weights, **kept}).items()}


def unstacked(params):
    """{path: array} with an entry "path/layer" for each layer of a stack."""
    found = {path: array for path, array in params.items() if path not in STACKED}
    for path, count in STACKED.items():
        found |= {f"{path}/{i}": params[path][i] for i in range(count) if path in params}
    return found


def stacked(params, stack=jnp.stack):
    """The reverse."""
    layers = {path for path in STACKED if f"{path}/0" in params}
    found = {path: array for path, array in params.items() if path.rpartition("/")[0] not in layers}
    return found | {path: stack([params[f"{path}/{i}"] for i in range(STACKED[path])]) for path in layers}


def largest_error(found, expected) -> float:
    return max(relative_error(found[name][path], w) for name, own in expected.items() for path, w in own.items())


class SoapState(NamedTuple):
    count: jax.Array
    mean: optax.Updates
    square: optax.Updates
    factors: optax.Updates
    bases: optax.Updates


def soap(learning_rate: float, b1: float = 0.9, b2: float = 0.95, eps: float = 1e-3) -> optax.GradientTransformation:
    """SOAP (Vyas et al. 2024) as somebody may have written it: Adam in the bases of Shampoo's factors, a list of two
    matrices for each matrix, renewed by a QR step each step; vectors take Adam."""

    def sides(p):
        return list(p.shape) if p.ndim == 2 else []

    def turned(x, bases):
        return bases[0].T @ x @ bases[1] if bases else x

    def init(params):
        factors = jax.tree.map(lambda p: [jnp.zeros((n, n), p.dtype) for n in sides(p)], params)
        bases = jax.tree.map(lambda p: [jnp.eye(n, dtype=p.dtype) for n in sides(p)], params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return SoapState(jnp.zeros((), jnp.int32), zeros, zeros, factors, bases)

    def update(updates, state, params=None):
        count = state.count + 1

        def one(g, mean, square, factors, bases):
            mean = b1 * mean + (1 - b1) * g
            square = b2 * square + (1 - b2) * turned(g, bases) ** 2
            step = turned(mean, bases) / (1 - b1**count) / (jnp.sqrt(square / (1 - b2**count)) + eps)
            step = bases[0] @ step @ bases[1].T if bases else step
            products = [g @ g.T, g.T @ g] if bases else []
            factors = [b2 * f + (1 - b2) * p for f, p in zip(factors, products, strict=True)]
            # A factor of few samples has a null space, whose basis rounding alone would choose.
            eye = [0.1 * jnp.trace(f) / len(f) * jnp.eye(len(f), dtype=f.dtype) for f in factors]
            bases = [jnp.linalg.qr((f + e) @ q)[0] for f, e, q in zip(factors, eye, bases, strict=True)]
            return -learning_rate * step, mean, square, factors, bases

        leaves, tree = jax.tree.flatten(updates)
        rest = [tree.flatten_up_to(each) for each in state[1:]]
        made = [one(*each) for each in zip(leaves, *rest, strict=True)]
        step, *after = (tree.unflatten(column) for column in zip(*made, strict=True))
        return step, SoapState(count, *after)

    return optax.GradientTransformation(init, update)
