"""Nemotron-H against transformers: logits, cached logits, loss and the gradient of every weight."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("torch")
pytest.importorskip("transformers")

from hetjax.models.huggingface.nemotron_h import nemotron_h_config, nemotron_h_entries, nemotron_h_hf_config
from tests.harness.huggingface.hybrids import CONFIGS, config_of, inputs, logits, loss_and_gradients
from tests.harness.transformers.hybrids import build, run

pytestmark = pytest.mark.live
# Of an output and of gradients, relative to the largest entry of each.
TOLERANCES = {"float32": (2e-5, 1e-4), "float64": (1e-9, 1e-9)}
PROMPT = 4


def error(got, want):
    """Relative to the largest entry; experts that no token chose have gradients of 0."""
    return np.abs(got - want).max() / (np.abs(want).max() or 1)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_equals_transformers(name, dtype, request):
    if dtype == "float64":
        request.getfixturevalue("float64")
    hf, given, (tolerance, of_gradients) = CONFIGS[name], inputs(), TOLERANCES[dtype]
    want = run(hf, given, wide=dtype == "float64")
    weights, tokens, output = want["weights"], given["tokens"], want["output"]
    assert {str(array.dtype) for part in want.values() for array in part.values()} == {dtype}
    # Rows of a prefill, and of training, have a least time step there; rows of single steps have none.
    clamped, free = config_of(hf, min_dt=hf["time_step_min"]), config_of(hf)
    assert error(logits(clamped, weights, tokens, prompt=tokens.shape[1]), output["logits"]) < tolerance
    stepped = logits(clamped, weights, tokens, prompt=PROMPT, steps=free)
    assert error(stepped[:, PROMPT - 1 :], output["stepped"][:, PROMPT - 1 :]) < tolerance
    loss, gradients = loss_and_gradients(clamped, weights, given)
    assert error(loss, output["loss"]) < tolerance
    assert gradients.keys() == want["gradients"].keys()
    errors = {name: error(gradient, want["gradients"][name]) for name, gradient in gradients.items()}
    assert max(errors.values()) < of_gradients, max(errors, key=errors.get)
    assert error(logits(free, weights, tokens, prompt=tokens.shape[1]), output["logits"]) > 10 * tolerance, "a clamp"


@pytest.mark.parametrize("name", CONFIGS)
def test_files_that_transformers_saves_hold_our_tensors_and_config(name, tmp_path):
    ours = nemotron_h_config(CONFIGS[name])
    build(nemotron_h_hf_config(ours)).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert nemotron_h_config(saved) == ours
    held = load_file(tmp_path / "model.safetensors")
    assert held.keys() == {name for entry in nemotron_h_entries(ours) for name in entry.names}
