"""Tiny Nemotron-H models of transformers with random weights: logits, loss and gradients, under released names."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import numpy as np
import torch
import transformers

from tests.harness.transformers.wide import float64_for_float32

# B batch · S sequence · V vocabulary

Made = dict[str, dict[str, np.ndarray]]


def build(hf: dict[str, Any]) -> transformers.NemotronHForCausalLM:
    """The model of a config.json, as transformers initializes it."""
    torch.manual_seed(0)
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return transformers.NemotronHForCausalLM._from_config(transformers.NemotronHConfig(**copy.deepcopy(hf)), **plain)


def run(hf: dict[str, Any], inputs: dict[str, np.ndarray], *, wide: bool = False) -> Made:
    """{"weights", "gradients": by name, "output": {"logits" [B, S, V], "loss", "stepped" [B, S, V]}}.

    `inputs` as `tests.harness.transformers.decoders.run` takes them. "stepped" are logits by way of a cache, from a
    prefill of 4 tokens on; those before its last are 0. `wide` for float64.
    """
    dtype = torch.float64 if wide else torch.float32
    with float64_for_float32(transformers.NemotronHForCausalLM) if wide else contextlib.nullcontext():
        model = build(hf).to(dtype)
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:
                buffer.data = buffer.data.to(dtype)
        randomize(model)
        tokens = torch.as_tensor(inputs["tokens"])
        made = model(input_ids=tokens, labels=torch.as_tensor(inputs["labels"]))
        made.loss.backward()
        stepped = step_by_step(model, tokens, prompt=4)
    named = dict(model.named_parameters())
    held = {**named, **{name: b for name, b in model.named_buffers() if "correction_bias" in name}}
    return {
        "weights": released({name: p.detach().numpy() for name, p in held.items()}),
        "gradients": released({name: p.grad.numpy() for name, p in named.items()}),
        "output": {
            "logits": made.logits.detach().numpy(), "loss": made.loss.detach().numpy(), "stepped": stepped.numpy()
        },
    }  # fmt: skip


@torch.no_grad()
def step_by_step(model: torch.nn.Module, tokens: torch.Tensor, *, prompt: int) -> torch.Tensor:
    """Return logits by way of a cache: of position `prompt` - 1 and all after it."""
    made = model(input_ids=tokens[:, :prompt], use_cache=True)
    out = torch.zeros(*tokens.shape, made.logits.shape[-1], dtype=made.logits.dtype)
    out[:, prompt - 1] = made.logits[:, -1]
    for row in range(prompt, tokens.shape[1]):
        made = model(input_ids=tokens[:, row : row + 1], past_key_values=made.past_key_values, use_cache=True)
        out[:, row] = made.logits[:, -1]
    return out


def randomize(model: torch.nn.Module) -> None:
    """Everything drawn anew: kernels of about the gain that training finds, norms and D around 1, and biases."""
    random = np.random.default_rng(5)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            noise = random.normal(size=tensor.shape)
            last = name.split(".")[-1]
            if "correction_bias" in name:
                tensor.copy_(torch.as_tensor(0.2 * noise))
            elif last == "dt_bias":
                tensor.copy_(torch.as_tensor(noise - 2))
            elif last == "A_log":
                tensor.copy_(torch.as_tensor(0.5 * noise))
            elif "norm" in name or last == "D":
                tensor.copy_(torch.as_tensor(1 + 0.2 * noise))
            elif "conv1d" in name or "embed" in name:
                tensor.copy_(torch.as_tensor(0.5 * noise))
            else:
                tensor.copy_(torch.as_tensor(noise * tensor.shape[-1] ** -0.5))


def released(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names of the released files, and a tensor for each expert's kernel, where memory holds those of all in one."""
    out = {}
    for name, tensor in tensors.items():
        name = f"backbone.{name.removeprefix('model.')}" if name.startswith("model.") else name
        if name.endswith(("experts.up_proj", "experts.down_proj")):
            experts, kernel = name.rsplit(".", 1)
            for e, expert in enumerate(tensor):
                out[f"{experts}.{e}.{kernel}.weight"] = expert
        else:
            out[name] = tensor
    return out
