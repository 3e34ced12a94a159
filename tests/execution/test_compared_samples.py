"""Losses over pairs of samples: microbatches would change them, and are refused or named."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.errors import ConfigError
from hetjax.meshes import Layout, Placement
from tests.harness.graphs.plain_gradients import largest_error, plain_gradients
from tests.harness.small_modules import IN, Encoder

SAMPLES = 16


class Contrast(nnx.Module):
    """Each sample's two features against those of all others: [B, D] twice -> cross entropy of the pairs."""

    compares_samples = True

    def __init__(self, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, left, right):
        return {"loss": -jnp.sum(jnp.diagonal(jax.nn.log_softmax(self.scale[...] * left @ jnp.sin(right).T)))}


def make_trainer(microbatches, dtype: str = "float32", **settings) -> Trainer:
    contrast = type("Contrast", (Contrast,), settings)(nnx.Rngs(0))
    modules = {"left": Encoder(nnx.Rngs(1)), "right": Encoder(nnx.Rngs(2)), "pairs": contrast}
    graph = ModuleGraph(modules, [Edge("left.features", "pairs.left"), Edge("right.features", "pairs.right")])
    layouts = {"left": Layout(devices="0-3", data=4), "right": Layout(devices="4-7", data=4), "pairs": Layout(data=8)}
    return Trainer(graph, Placement(layouts), optimizer=optax.sgd(1e-2), microbatches=microbatches, param_dtype=dtype)


def make_batch():
    random = np.random.default_rng(0)
    x = {name: {"x": random.normal(size=(SAMPLES, IN))} for name in ("left", "right")}
    return {**x, "loss_tokens": SAMPLES}


def test_pairs_over_all_shards_of_the_batch_equal_one_device(float64):
    trainer = make_trainer(1, "float64")
    expected = plain_gradients(trainer.graph, make_batch(), {"pairs": SAMPLES}, {"pairs": 1.0})
    assert largest_error(trainer, make_batch(), expected) <= 1e-10


def test_microbatches_are_refused_by_name():
    with pytest.raises(ConfigError) as caught:
        make_trainer(2)
    assert str(caught.value) == (
        "module 'pairs' compares samples with each other (compares_samples=True), and 2 microbatches would show it 2 "
        "parts of the batch one by one, which is another loss: set microbatches=1 (remat saves memory instead), or, if "
        "the pairs of each part are what you want, compares_samples='within_microbatch' on Contrast"
    )


def test_pairs_within_a_microbatch_are_said_in_a_line(caplog):
    with caplog.at_level(logging.INFO, logger="hetjax"):
        make_trainer(2, compares_samples="within_microbatch")
    assert (
        "module 'pairs' compares the samples of each of 2 microbatches with each other: another number of microbatches "
        "is another loss"
    ) in caplog.messages
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="hetjax"):
        make_trainer(1, compares_samples="within_microbatch")
    assert not caplog.messages


def test_settings_that_contradict_each_other_or_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="has both compares_samples=True and independent_samples=True; one of them"):
        make_trainer(1, independent_samples=True)
    with pytest.raises(ConfigError, match="compares_samples='batch'; give True, False or 'within_microbatch'"):
        make_trainer(1, compares_samples="batch")
