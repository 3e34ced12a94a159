"""Generation with a mixture of experts, over expert, tensor and pipeline stages."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import hetjax
from hetjax.generation.generator import Generator
from hetjax.meshes import Layout, Placement
from hetjax.models import LanguageModel, MoEConfig
from tests.harness.generation.two_modules import DECODER, LENGTHS, TOKENS, B, R, filled
from tests.harness.models.generate import generate

EXPERTS = MoEConfig(
    count=4, top_k=2, activation="relu2", shared_width=8, scores="sigmoid", bias_rate=0.1, balance_loss=0.1,
    capacity_factor=0.5,
)  # fmt: skip
CONFIG = dataclasses.replace(DECODER, experts=EXPERTS)
LAYOUTS = {
    "expert4-tensor2": Layout(expert=4, tensor=2),
    "stage2-expert2": Layout(devices="0-3", stage=2, expert=2),
    "expert2-context2": Layout(devices="0-3", expert=2, context=2),
}


@functools.cache
def model() -> LanguageModel:
    """Random weights and a random bias; what was counted so far is 0."""
    module = filled(functools.partial(LanguageModel, CONFIG))
    module.layers.block.mlp.router.counts.set_value(np.zeros((CONFIG.layers, EXPERTS.count), np.int32))
    return module


@functools.cache
def on_one_device() -> np.ndarray:
    run = nnx.jit(functools.partial(generate, max_new_tokens=R, stop_token=-1))
    return np.asarray(run(model(), TOKENS, LENGTHS))


@pytest.mark.parametrize("name", LAYOUTS)
def test_answers_of_experts_equal_one_device(name):
    want = on_one_device()
    assert len(np.unique(want, axis=0)) == B
    graph = hetjax.ModuleGraph({"llm": model()})
    trainer = hetjax.Trainer(graph, Placement({"llm": LAYOUTS[name]}), optimizer=optax.sgd(0.1))
    state = trainer.init()
    before = jax.device_get({name: stage.buffers for name, stage in state.stages.items()})
    answers = Generator(trainer, max_new_tokens=R, stop_token=-1).generate(state, {"llm": {"tokens": TOKENS}}, LENGTHS)
    np.testing.assert_array_equal(answers, want)
    for stage, buffers in before.items():
        for path, buffer in buffers.items():
            np.testing.assert_array_equal(state.stages[stage].buffers[path], buffer)
