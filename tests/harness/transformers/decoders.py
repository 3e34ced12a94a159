"""Tiny decoders of transformers with random weights: their logits, loss and gradients, under released names."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import numpy as np
import torch
import transformers

from tests.harness.transformers.wide import float64_for_float32

# B batch · S sequence · V vocabulary

CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
}


def run(hf: dict[str, Any], inputs: dict[str, np.ndarray], *, wide: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """{"weights", "gradients": by name, "output": {"logits" [B, S, V], "loss"}} of a config.json's model.

    `inputs` are "tokens" [B, S] and "labels" [B, S], as transformers takes them: label s is predicted from the tokens
    before it; -100 for none. `wide` for float64.
    """
    make_config, make_model = CLASSES[hf["model_type"]]
    dtype = torch.float64 if wide else torch.float32
    with float64_for_float32(make_model) if wide else contextlib.nullcontext():
        torch.manual_seed(0)
        plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
        model = make_model._from_config(make_config(**copy.deepcopy(hf)), **plain).to(dtype)
        randomize(model)
        made = model(input_ids=torch.as_tensor(inputs["tokens"]), labels=torch.as_tensor(inputs["labels"]))
        made.loss.backward()
    named = dict(model.named_parameters())
    return {
        "weights": released({name: p.detach().numpy() for name, p in named.items()}),
        "gradients": released({name: p.grad.numpy() for name, p in named.items()}),
        "output": {"logits": made.logits.detach().numpy(), "loss": made.loss.detach().numpy()},
    }


def randomize(model: torch.nn.Module) -> None:
    """Every weight drawn anew: kernels of about the gain that training finds, norms around 1."""
    random = np.random.default_rng(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = random.normal(size=parameter.shape)
            scale = (
                0.2 * noise + 1 if "norm" in name else noise * (0.5 if "embed" in name else parameter.shape[-1] ** -0.5)
            )
            parameter.copy_(torch.as_tensor(scale))


def released(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A tensor for each expert's kernel, where transformers holds those of all experts in one."""
    out = {}
    for name, tensor in tensors.items():
        if name.endswith("experts.gate_up_proj"):
            for e, expert in enumerate(tensor):
                gate, up = np.split(expert, 2)
                out[name.replace("gate_up_proj", f"{e}.gate_proj.weight")] = gate
                out[name.replace("gate_up_proj", f"{e}.up_proj.weight")] = up
        elif name.endswith("experts.down_proj"):
            for e, expert in enumerate(tensor):
                out[name.replace("down_proj", f"{e}.down_proj.weight")] = expert
        else:
            out[name] = tensor
    return out
