"""A vision encoder, a projector and a decoder as one model of transformers: logits, and files in and out."""

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers

from hetjax.cli import main
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from tests.harness.huggingface.lfm2_vl_model import CONFIG, GRID, our_logits, picture, prompt
from tests.harness.huggingface.lfm2_vl_run import export_of_a_run
from tests.harness.transformers.decoders import randomize

pytestmark = pytest.mark.live


@torch.no_grad()
def their_logits(model) -> np.ndarray:
    side = CONFIG["vision_config"]["patch_size"]
    cut = picture().reshape(GRID[0], side, GRID[1], side, 3).swapaxes(1, 2)
    patches = torch.from_numpy(cut.reshape(1, GRID[0] * GRID[1], -1).copy())
    made = model.eval()(
        input_ids=torch.as_tensor(prompt()),
        pixel_values=patches,
        spatial_shapes=torch.tensor([GRID]),
        pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int32),
    )
    return made.logits[:, -1].numpy()


@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_transformers_and_every_byte_comes_back(tmp_path, tied):
    settings = {key: value for key, value in CONFIG.items() if key != "model_type"}
    config = transformers.Lfm2VlConfig(**{**settings, "tie_word_embeddings": tied})
    model = transformers.Lfm2VlForConditionalGeneration._from_config(config, attn_implementation="eager")
    randomize(model)
    model.save_pretrained(tmp_path / "hf")
    want = their_logits(model)
    got = our_logits(HuggingFaceCheckpoint(tmp_path / "hf"))
    assert np.abs(got - want).max() / np.abs(want).max() < 2e-5
    main(["convert", "--from", str(tmp_path / "hf"), "--to", str(tmp_path / "ours"), "--json"])
    main(["convert", "--from", str(tmp_path / "ours"), "--to", str(tmp_path / "back"), "--json"])
    saved, found = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "back"))
    assert found.keys() == saved.keys()
    assert all(found[name].tobytes() == tensor.tobytes() for name, tensor in saved.items())


def test_a_run_that_is_exported_is_loaded_by_transformers(tmp_path):
    folder = export_of_a_run(tmp_path)
    model, told = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    assert model.dtype == torch.float32 and model.generation_config.eos_token_id == 11
    want, got = their_logits(model), our_logits(HuggingFaceCheckpoint(folder))
    assert np.abs(got - want).max() / np.abs(want).max() < 2e-5
