"""Trainers of a user's own modules, which name no dims, and batches for them."""

import functools

import numpy as np
import optax
from flax import nnx

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.meshes import Layout, Placement
from tests.harness.small_modules import CLASSES, IN, Encoder, Head, Middle, Vote

SAMPLES = 12


def make_batch(*encoders: str, sink: str = "head", seed: int = 0):
    random = np.random.default_rng(seed)
    inputs = {name: {"x": random.normal(size=(SAMPLES, IN)).astype(np.float32)} for name in encoders}
    labels = random.integers(0, CLASSES, SAMPLES).astype(np.int32)
    return {**inputs, sink: {"labels": labels}, "loss_tokens": SAMPLES}


def make_optimizer() -> optax.GradientTransformation:
    return optax.adam(1e-2, eps=1e-3)


@functools.cache
def plain_modules():
    return {"encoder": Encoder(nnx.Rngs(1)), "head": Head(nnx.Rngs(2))}


def plain_trainer(**options) -> Trainer:
    graph = ModuleGraph(plain_modules(), [Edge("encoder.features", "head.features")])
    layouts = {"encoder": Layout(devices="0-2", data=3), "head": Layout(devices="4-7", fsdp=2, tensor=2)}
    return Trainer(graph, Placement(layouts), **{"optimizer": make_optimizer(), "microbatches": 2, **options})


@functools.cache
def branching_modules():
    kinds = {"left": Encoder, "right": Encoder, "middle": Middle, "vote": Vote, "head": Head}
    return {name: kind(nnx.Rngs(seed)) for seed, (name, kind) in enumerate(kinds.items())}
