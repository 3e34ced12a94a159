"""A folder of odd language models of transformers: each is refused by name, or answers with the same logits."""

import re

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from hetjax.models import ModelError
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from hetjax.models.huggingface.tensor_files.fp8 import dequantize_fp8_blocks
from tests.harness.huggingface.odd_configs import CONFIGS, our_logits, stored, tokens
from tests.harness.paths import GOLDEN
from tests.harness.transformers.odd_models import config_json, logits_of_folder, save_model

pytestmark = pytest.mark.live


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers_or_the_folder_is_refused(tmp_path, name):
    odd = CONFIGS[name]
    save_model(odd, tmp_path)
    try:
        checkpoint = HuggingFaceCheckpoint(tmp_path, family=odd.family)
        got = our_logits(checkpoint, tokens())
    except ModelError as error:
        assert odd.refused and re.search(odd.refused, str(error)), error
        return
    assert odd.refused is None
    want = logits_of_folder(tmp_path, tokens())
    assert np.abs(got - want).max() / np.abs(want).max() < 2e-5


def test_the_stored_configs_are_those_that_transformers_writes():
    held = stored(GOLDEN / "odd_configs.json")
    assert held.keys() == CONFIGS.keys()
    assert {name: config_json(odd) for name, odd in CONFIGS.items()} == held


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fp8_by_blocks_is_dequantized_as_transformers_does_it(dtype):
    random = np.random.default_rng(0)
    quantized = random.normal(size=(256, 384)).astype(ml_dtypes.float8_e4m3fn)
    scales = random.uniform(1e-4, 1e-2, (2, 3)).astype(np.float32)
    theirs = Fp8Dequantize(None)._dequantize_one(
        torch.from_numpy(quantized.view(np.uint8)).view(torch.float8_e4m3fn),
        torch.from_numpy(scales),
        getattr(torch, dtype),
    )
    ours = dequantize_fp8_blocks(quantized, scales, (128, 128), np.dtype(getattr(ml_dtypes, dtype, dtype)))
    np.testing.assert_array_equal(ours.astype(np.float32), theirs.to(torch.float32).numpy())
