"""Llama and Qwen3 against transformers: logits, cached logits, loss and the gradient of every weight."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.harness.huggingface.decoders import (
    CONFIGS,
    config_of,
    entries_of,
    hf_config_of,
    inputs,
    logits,
    loss_and_gradients,
)
from tests.harness.transformers.decoders import CLASSES, run

pytestmark = pytest.mark.live
# Of an output and of gradients, relative to the largest entry of each.
TOLERANCES = {"float32": (2e-5, 1e-4), "float64": (1e-9, 1e-9)}


def error(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_equals_transformers(name, dtype, request):
    if dtype == "float64":
        request.getfixturevalue("float64")
    hf, given, (tolerance, of_gradients) = CONFIGS[name], inputs(), TOLERANCES[dtype]
    want = run(hf, given, wide=dtype == "float64")
    weights, tokens = want["weights"], given["tokens"]
    assert {str(array.dtype) for part in want.values() for array in part.values()} == {dtype}
    assert error(logits(hf, weights, tokens, prompt=tokens.shape[1]), want["output"]["logits"]) < tolerance
    stepped, prompt = logits(hf, weights, tokens, prompt=4), 3
    assert error(stepped[:, prompt:], want["output"]["logits"][:, prompt:]) < tolerance
    loss, gradients = loss_and_gradients(hf, weights, given)
    assert error(loss, want["output"]["loss"]) < tolerance
    assert gradients.keys() == want["gradients"].keys()
    errors = {name: error(gradient, want["gradients"][name]) for name, gradient in gradients.items()}
    assert max(errors.values()) < of_gradients, max(errors, key=errors.get)


@pytest.mark.parametrize("name", CONFIGS)
def test_files_that_transformers_saves_hold_our_tensors_and_config(name, tmp_path):
    make_config, make_model = CLASSES[CONFIGS[name]["model_type"]]
    ours = config_of(CONFIGS[name])
    model = make_model._from_config(make_config(**hf_config_of(CONFIGS[name], ours)))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert config_of(saved) == ours
    shapes = {name: tensor.shape for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert shapes.keys() == {name for entry in entries_of(saved, ours) for name in entry.names}
