"""Odd language models, as transformers wrote their configs and computed their logits: equal, or refused by name."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hetjax.models import ModelError
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from hetjax.models.huggingface.families import find_family
from hetjax.models.huggingface.tensor_files.quantized import check_method
from tests.harness.huggingface.folders import shapes_of
from tests.harness.huggingface.odd_configs import CONFIGS, our_logits, random_tensors, stored, tokens
from tests.harness.paths import GOLDEN

HELD = stored(GOLDEN / "odd_configs.json")
OF_TENSORS = {"olmo2 as qwen3"}
"""Refused for their tensors, which are not stored."""
QUICK = {"llama, wide heads", "llama, rope llama3", "qwen3_moe, unnormalized"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name, odd in CONFIGS.items()
        if odd.refused is None
    ],
)
def test_logits_equal_those_of_transformers(tmp_path, name):
    hf, family = HELD[name], CONFIGS[name].family
    (tmp_path / "config.json").write_text(json.dumps(hf))
    save_file(random_tensors(shapes_of(hf, family)), tmp_path / "model.safetensors")
    got = our_logits(HuggingFaceCheckpoint(tmp_path, family=family), tokens())
    want = load_file(GOLDEN / "odd_configs.safetensors")[name]
    assert np.abs(got - want).max() / np.abs(want).max() < 2e-5


@pytest.mark.parametrize("name", [name for name, odd in CONFIGS.items() if odd.refused and name not in OF_TENSORS])
def test_what_transformers_computes_otherwise_is_refused_by_name(name):
    hf, odd = HELD[name], CONFIGS[name]
    with pytest.raises(ModelError) as refused:
        find_family(hf, odd.family).configs(hf)
        check_method(hf.get("quantization_config", {}))
    assert re.search(odd.refused, str(refused.value)), refused.value


def test_a_hybrid_as_transformers_writes_it_is_read():
    groups = HELD["nemotron_h, groups of experts"]
    plain = {**groups, "n_group": 1}
    assert plain["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    assert find_family(plain).configs(plain)["llm"].layers == 4
