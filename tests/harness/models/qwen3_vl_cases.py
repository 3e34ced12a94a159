"""Tiny Qwen3-VL modules with random weights, and pictures and films for them."""

import functools

import numpy as np
from flax import nnx

from hetjax import Edge, ModuleGraph
from hetjax.models.components import build_component
from hetjax.models.huggingface.families import FAMILIES
from tests.harness.compile_quickly import quickly
from tests.harness.huggingface import qwen3_vl_model
from tests.harness.models.radio_cases import randomized

CONFIGS = {name: FAMILIES["qwen3_vl"].configs(hf) for name, hf in qwen3_vl_model.CONFIGS.items()}
PORTS = {"tokens": "image_tokens", "deepstack_0": "deepstack_0", "deepstack_1": "deepstack_1"}
"""Of the encoder, and those of the language model that take them."""


def build(name="qwen3_vl", dtype=np.float32):
    """Both modules, by name."""
    return {
        module: randomized(nnx.eval_shape(lambda c=config: build_component(c, nnx.Rngs(0))), dtype)
        for module, config in CONFIGS[name].items()
    }


def vision_inputs(dtype=np.float32):
    """Those of two samples, with a picture each and a film in the second."""
    given = qwen3_vl_model.our_batch(CONFIGS["qwen3_vl"]["vision"], qwen3_vl_model.given())["vision"]
    return {port: each.astype(dtype) if port.endswith("patches") else each for port, each in given.items()}


@functools.cache
@quickly()
def make_graph(name: str) -> ModuleGraph:
    """The encoder into the language model, at all depths, with weights."""
    edges = [Edge(f"vision.{ours}", f"llm.{theirs}") for ours, theirs in PORTS.items()]
    return ModuleGraph(build(name), edges)


@functools.cache
def make_batch(samples: int, length: int):
    """The two samples several times, in sequences of even length, with unlike numbers of tokens in the loss."""
    given = qwen3_vl_model.our_batch(CONFIGS["qwen3_vl"]["vision"], qwen3_vl_model.given())
    repeat = lambda x: np.tile(x, (samples // 2, *[1] * (x.ndim - 1)))  # noqa: E731
    batch = {module: {port: repeat(x) for port, x in ports.items()} for module, ports in given.items()}
    random, llm = np.random.default_rng(3), batch["llm"]
    batch["vision"] = {
        port: random.normal(size=x.shape) * (x != 0) if port.endswith("patches") else x
        for port, x in batch["vision"].items()
    }
    room = length - llm["tokens"].shape[1]
    llm["image_positions"] = np.where(llm["image_positions"] < length - room, llm["image_positions"], length)
    behind = llm["coordinates"][:, -1:] + 1 + np.arange(room, dtype=np.int32)[None, :, None]
    llm["coordinates"] = np.concatenate([llm["coordinates"], behind], axis=1)
    llm["tokens"] = np.pad(llm["tokens"], ((0, 0), (0, room)))
    llm["labels"] = random.integers(0, 288, llm["tokens"].shape).astype(np.int32)
    llm["loss_weights"] = (random.random(llm["tokens"].shape) < np.linspace(0.1, 1, samples)[:, None]).astype(
        np.float64
    )
    return batch
