"""A vision encoder and a decoder of one checkpoint as our modules: logits, loss, and gradients by their names there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.families import find_family
from tests.harness.huggingface.whole_models import read_arrays, write_tensors
from tests.harness.models.arrays import with_arrays

Arrays = Mapping[str, np.ndarray]
Modules = Mapping[str, nnx.Module]


def modules_of(hf: Mapping[str, Any], weights: Arrays) -> Modules:
    """Our modules with a checkpoint's tensors, in their dtype."""
    family = find_family(hf, tensors=weights)
    configs, modules = family.configs(hf), {}
    for name, entries in family.entries(configs).items():
        shell = family.module(name, configs)
        arrays = read_arrays(entries, weights, arrays_by_path(shell))
        modules[name] = with_arrays(shell, {path: jnp.asarray(array) for path, array in arrays.items()})
    return modules


def fused(modules: Modules, batch: Mapping[str, Arrays]) -> dict[str, jax.Array]:
    """The language model's inputs with what the encoder makes of the images."""
    seen = modules["vision"](**batch["vision"])
    return {**batch["llm"], **{"image_tokens" if port == "tokens" else port: made for port, made in seen.items()}}


def logits(modules: Modules, batch: Mapping[str, Arrays]) -> np.ndarray:
    """Return logits [B, S, V] of all positions by a prefill of all tokens."""
    llm = modules["llm"]
    given = nnx.jit(lambda modules: fused(modules, batch))(dict(modules))
    given = {name: array for name, array in given.items() if name not in ("labels", "loss_weights")}
    samples, length = given["tokens"].shape
    cache = llm.init_cache(samples, length, given["image_tokens"].dtype)
    rows = jnp.broadcast_to(jnp.arange(length), (samples, length))

    @nnx.jit
    def prefill(llm, position):
        return llm.decode(cache, positions=rows, last=jnp.full(samples, position), **given)[0]["logits"]

    return np.stack([prefill(llm, position) for position in range(length)], axis=1)


def loss_and_gradients(
    hf: Mapping[str, Any], modules: Modules, batch: Mapping[str, Arrays], weights: Arrays | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The mean loss over all labels, and gradients under the names that `weights`, or else a release, have."""
    split = {name: nnx.split(module) for name, module in modules.items()}
    definitions = {name: definition for name, (definition, _) in split.items()}

    @jax.jit
    @jax.value_and_grad
    def run(states):
        whole = {name: nnx.merge(definitions[name], state) for name, state in states.items()}
        return whole["llm"](**fused(whole, batch))["loss"] / batch["llm"]["loss_weights"].sum()

    loss, gradients = run({name: state for name, (_, state) in split.items()})
    family, named = find_family(hf, tensors=weights), {}
    for name, entries in family.entries(family.configs(hf)).items():
        named |= write_tensors(entries, jax.device_get(arrays_by_path(nnx.merge(definitions[name], gradients[name]))))
    return np.asarray(loss), named


def shifted(labels: np.ndarray, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Labels and weights of our kind from transformers' labels, each predicted from the tokens before it."""
    labels = np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    return {"labels": labels, "loss_weights": (labels >= 0).astype(dtype)}
