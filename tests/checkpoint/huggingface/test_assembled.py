"""Whole models in one Hugging Face checkpoint: vision encoder, projector and language model."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from hetjax.data.chat import load_tokenizer
from hetjax.models import ModelError
from hetjax.models.huggingface.families import FAMILIES
from hetjax.models.huggingface.tensor_files.tensors import CheckpointTensors
from tests.harness.convert_tool import convert, refused
from tests.harness.huggingface.folders import tensors_of, write_folder
from tests.harness.huggingface.lfm2_vl_model import CONFIG, TEXT
from tests.harness.huggingface.lfm2_vl_run import export_of_a_run, run_of_the_model

FAMILY = FAMILIES["lfm2_vl"]
FIXED = {key: value for key, value in CONFIG["vision_config"].items() if key != "num_patches"}
FIXED |= {"model_type": "siglip_vision_model", "image_size": 16}


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_byte_comes_back(tmp_path, tied):
    hf = {**CONFIG, "tie_word_embeddings": tied, "torch_dtype": "bfloat16"}
    tensors = tensors_of(hf)
    assert ("lm_head.weight" in tensors) is not tied
    back = convert(convert(write_folder(tmp_path / "hf", hf, tensors), tmp_path / "ours"), tmp_path / "back")
    found = load_file(back / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(found[name].tobytes() == tensor.tobytes() for name, tensor in tensors.items())
    assert json.loads((back / "config.json").read_text()) == hf


def test_a_run_becomes_a_whole_model_with_all_that_stands_beside_its_weights(tmp_path):
    out = export_of_a_run(tmp_path)
    given, found = load_file(tmp_path / "hf" / "model.safetensors"), load_file(out / "model.safetensors")
    assert found.keys() == given.keys()
    assert all(found[name].tobytes() == tensor.tobytes() for name, tensor in given.items())
    hf = json.loads((out / "config.json").read_text())
    assert FAMILY.configs(hf) == FAMILY.configs(CONFIG)
    assert (hf["torch_dtype"], hf["image_token_id"], hf["eos_token_id"]) == ("float32", 18, 11)
    assert (hf["text_config"]["max_position_embeddings"], hf["text_config"]["eos_token_id"]) == (64, 11)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 11, "pad_token_id": 0, "do_sample": False}
    assert load_tokenizer(out).placeholders["image"] == 18 and "im_start" in (out / "chat_template.jinja").read_text()
    assert set(json.loads((out / "preprocessor_config.json").read_text())) == {"image_mean", "image_std"}


def test_a_run_of_other_modules_is_refused_by_their_names(tmp_path, capsys):
    run = run_of_the_model(tmp_path)
    message = refused(capsys, "--from", run, "--to", tmp_path / "out", "--family", "nemotron_h")
    assert "family 'nemotron_h' takes a NemotronHConfig as module 'llm', which is a DecoderConfig in" in message
    assert not (tmp_path / "out").exists()


def test_only_the_language_model_is_quantized(tmp_path):
    hf = write_folder(tmp_path / "hf", CONFIG, tensors_of(CONFIG))
    quantized = convert(convert(hf, tmp_path / "ours"), tmp_path / "out", "--quantize", "fp8")
    held = CheckpointTensors(quantized)
    narrow = [name for name in held if held.info(name).dtype.itemsize == 1]
    assert len(narrow) == 14 and all(name.startswith("model.language_model.layers.") for name in narrow)
    assert np.dtype(held.info("lm_head.weight").dtype).name == "bfloat16"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text_config": {**TEXT, "model_type": "lfm2"}}, "text_config is of model_type 'lfm2'; only llama, qwen3"),
        ({"projector_use_layernorm": True}, "projector_use_layernorm = True is not supported"),
        ({"downsample_factor": None}, "downsample_factor = None is not supported"),
        ({"vision_config": FIXED}, "takes a SigLIP 2 tower for images of any size"),
        ({"tile_size": 512}, "tile_size = 512 is not known here"),
    ],
)
def test_what_is_not_built_is_refused(change, told):
    with pytest.raises(ModelError, match=told):
        FAMILY.configs({**CONFIG, **change})


def test_defaults_of_the_family_are_not_ours():
    lacking = {key: value for key, value in CONFIG.items() if key != "downsample_factor"}
    with pytest.raises(ModelError, match="downsample_factor = 2 is not supported; it must be 1"):
        FAMILY.configs(lacking)
