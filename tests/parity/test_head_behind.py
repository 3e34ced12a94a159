"""A head with a loss of its own behind a language model that is split over every axis, and answers from that model."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.generation.generator import Generator
from hetjax.meshes import Layout, Placement
from tests.harness.graphs.plain_gradients import largest_error, plain_gradients
from tests.harness.parity.problem import LLM, ROWS, SAMPLES
from tests.harness.parity.problem import make_batch as make_parity_batch
from tests.harness.parity.problem import make_graph as make_parity_graph

LOSSES = {"head": 0.5, "llm": 1.0}


class Regression(nnx.Module):
    """Squared distance of [B, S, D] to targets, position by position."""

    def __init__(self, rngs: nnx.Rngs):
        self.out = nnx.Linear(LLM.width, LLM.width, rngs=rngs)

    def __call__(self, features, targets):
        return {"loss": jnp.sum(jnp.square(self.out(features) - targets))}


@functools.cache
def make_graph() -> ModuleGraph:
    graph = make_parity_graph()
    modules = {**graph.modules, "head": Regression(nnx.Rngs(3))}
    return ModuleGraph(modules, [*graph.edges, Edge("llm.features", "head.features")], losses=LOSSES)


def make_batch():
    batch = make_parity_batch()
    targets = np.random.default_rng(4).normal(size=(SAMPLES, ROWS, LLM.width)).astype(np.float32)
    return {**batch, "head": {"targets": targets}, "loss_tokens": {"head": SAMPLES}}


@functools.cache
def expected():
    counts = {"head": SAMPLES, "llm": float(np.sum(make_batch()["llm"]["loss_weights"]))}
    return plain_gradients(make_graph(), make_batch(), counts, LOSSES)


def make_trainer(llm: Layout, dtype: str = "float64") -> Trainer:
    placement = Placement({"vision": Layout(devices="0-1", data=2), "llm": llm, "head": Layout(devices="6-7", data=2)})
    return Trainer(make_graph(), placement, optimizer=optax.sgd(1e-2), microbatches=2, param_dtype=dtype)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize(
    "llm",
    [
        Layout(devices="2-5", context=2, tensor=2),
        Layout(devices="2-5", stage=2, context=2),
        Layout(devices="2-5", fsdp=4),
    ],
    ids=["context-tensor", "stages-context", "fsdp"],
)
def test_what_is_behind_a_split_sequence_equals_one_device(float64, llm):
    assert largest_error(make_trainer(llm), make_batch(), expected()) <= 1e-10


@pytest.mark.slow
@pytest.mark.quick
def test_a_language_model_answers_with_a_head_behind_it():
    alone = Trainer(
        make_parity_graph(),
        Placement({"vision": Layout(devices="0-1", data=2), "llm": Layout(devices="2-5", stage=2, data=2)}),
        optimizer=optax.sgd(1e-2),
    )
    trainer = make_trainer(Layout(devices="2-5", stage=2, data=2), "float32")
    batch = make_parity_batch()
    prompts = {
        "vision": {"images": batch["vision"]["images"][:8]},
        "llm": {port: batch["llm"][port][:8] for port in ("tokens", "image_positions")},
    }
    answers = [
        Generator(each, max_new_tokens=3, stop_token=0).generate(each.init(), prompts, [ROWS] * 8).tolist()
        for each in (alone, trainer)
    ]
    assert answers[0] == answers[1]
