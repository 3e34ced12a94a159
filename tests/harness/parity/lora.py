"""A language model with low-rank maps that add something, and the gradients that the dense model's make for them."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax import ModuleGraph
from hetjax.models import LanguageModel, LoraConfig, MoEConfig, merge_lora, with_lora
from hetjax.models.lora import linear_maps
from tests.harness.compile_quickly import quickly
from tests.harness.parity import problem

LORA = LoraConfig(rank=2, alpha=6.0)
EXPERTS = MoEConfig(count=8, top_k=2, shared_width=16)
MODELS = {"dense": problem.LLM, "experts": dataclasses.replace(problem.LLM, mlp_width=16, experts=EXPERTS)}


@functools.cache
@quickly()
def make_module(model: str = "dense") -> LanguageModel:
    """Weights in 64 bits, so that what is merged is not rounded, and B other than zero."""
    module = with_lora(LanguageModel(MODELS[model], rngs=nnx.Rngs(2)), LORA)
    for _, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        variable.set_value(variable.get_value().astype("float64"))
    random = np.random.default_rng(0)
    for _, linear in linear_maps(module):
        if linear.lora is not None:
            kernel = linear.lora.b.kernel
            kernel.set_value(jnp.asarray(0.2 * random.normal(size=kernel.get_value().shape)))
    return module


@functools.cache
def make_graph(model: str = "dense") -> ModuleGraph:
    return ModuleGraph({"llm": make_module(model)})


@functools.cache
def merged_graph(model: str = "dense") -> ModuleGraph:
    return ModuleGraph({"llm": merge_lora(make_module(model))})


def make_batch():
    """Text alone: images would go where a text's tokens are."""
    llm = problem.make_batch()["llm"]
    return {"llm": {name: array for name, array in llm.items() if name != "image_positions"}}


def projected(module: LanguageModel, dense: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The gradients of A and B that those of the sum W + scale A B make, by path: scale dW B^T and scale A^T dW."""
    found = {}
    for path, linear in linear_maps(module):
        if linear.lora is None:
            continue
        path = path.replace(".", "/")
        a, b, ins = linear.lora.a.kernel[...], linear.lora.b.kernel[...], len(linear.ins)
        layers, scale = a.shape[: -1 - ins], linear.lora.scale
        matrix = dense[f"{path}/kernel"].reshape(*layers, -1, np.prod(b.shape[len(layers) + 1 :]))
        left = np.asarray(a).reshape(*layers, -1, a.shape[-1])
        right = np.asarray(b).reshape(*layers, a.shape[-1], -1)
        found[f"{path}/lora/a/kernel"] = scale * (matrix @ right.swapaxes(-1, -2)).reshape(a.shape)
        found[f"{path}/lora/b/kernel"] = scale * (left.swapaxes(-1, -2) @ matrix).reshape(b.shape)
    return found
