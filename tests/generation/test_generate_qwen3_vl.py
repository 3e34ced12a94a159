"""Answers about images that inner layers of the language model read, too, and whose positions are rows and columns."""

import functools

import numpy as np
import optax
import pytest

from hetjax import Trainer
from hetjax.generation.generator import Generator
from hetjax.meshes import Layout, Placement
from tests.harness.huggingface.vision_language import logits
from tests.harness.models.qwen3_vl_cases import build, make_batch, make_graph

NEW, PROMPT, LENGTH = 3, 25, 28
PLACEMENTS = {
    "stages": {"vision": Layout(devices="0-3", stage=2, data=2), "llm": Layout(devices="4-6", stage=3)},
    "colocated": {"vision": Layout(data=4, tensor=2), "llm": Layout(data=2, context=2, tensor=2)},
}


def prompts(length):
    batch = make_batch(2, LENGTH)
    vision = {port: x.astype(np.float32) if port.endswith("patches") else x for port, x in batch["vision"].items()}
    llm = {port: x for port, x in batch["llm"].items() if port not in ("labels", "loss_weights")}
    cut = {port: x[:, :length] if port in ("tokens", "coordinates") else x for port, x in llm.items()}
    return {"vision": vision, "llm": cut}


@functools.cache
def greedy():
    """The likeliest tokens, each by a prefill of all before it."""
    modules, batch = build(), prompts(LENGTH)
    tokens = batch["llm"]["tokens"]
    for position in range(PROMPT, PROMPT + NEW):
        made = logits(modules, {**batch, "llm": {**batch["llm"], "tokens": tokens}})
        tokens = tokens.copy()  # a jit may still hold the array that it was given
        tokens[:, position] = made[:, position - 1].argmax(axis=-1)
    return tokens[:, PROMPT:]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACEMENTS)
def test_answers_equal_those_of_prefills(name):
    trainer = Trainer(make_graph("qwen3_vl"), Placement(PLACEMENTS[name]), optimizer=optax.sgd(0.1), microbatches=1)
    generator = Generator(trainer, max_new_tokens=NEW, stop_token=-1)
    answers = generator.generate(trainer.init(), prompts(PROMPT), np.array([PROMPT, PROMPT]))
    np.testing.assert_array_equal(answers, greedy())
