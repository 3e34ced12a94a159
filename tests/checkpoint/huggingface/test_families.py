"""Families with several modules, or with passengers."""

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

from hetjax.models.huggingface.tensor_files.tensors import CheckpointTensors
from tests.harness.convert_tool import convert, refused
from tests.harness.huggingface.folders import tensors_of, write_folder
from tests.harness.huggingface.omni_configs import TINY as TINY_OMNI


def omni_tensors() -> dict[str, np.ndarray]:
    """Those of the modules, and the passengers of a saved checkpoint."""
    random = np.random.default_rng(1)
    tensors = tensors_of(TINY_OMNI)
    for name in tensors:
        if name.endswith("e_score_correction_bias"):
            tensors[name] = tensors[name].astype(np.float32)
        if name.endswith("num_batches_tracked"):
            tensors[name] = np.asarray(7, np.int64)
    vision, audio = "vision_model.radio_model.", "sound_encoder.encoder.feature_extractor.featurizer."
    return tensors | {
        f"{vision}input_conditioner.norm_mean": random.normal(size=(3, 1, 1)).astype(np.float32),
        f"{vision}input_conditioner.norm_std": random.normal(size=(3, 1, 1)).astype(np.float32),
        f"{vision}summary_idxs": np.asarray([0, 1]),
        f"{vision}model.blocks.1.layer_scale1.lambda1": np.ones(32, ml_dtypes.bfloat16),
        f"{audio}fb": random.normal(size=(1, 16, 257)).astype(np.float32),
        f"{audio}window": random.normal(size=400).astype(np.float32),
    }


def test_the_omni_family_comes_back_with_all_its_passengers(tmp_path):
    tensors = omni_tensors()
    ours = convert(write_folder(tmp_path / "hf", TINY_OMNI, tensors, shards=2), tmp_path / "ours")
    assert sorted(path.name for path in (ours / "0").iterdir() if path.name.endswith(".weights")) == [
        "audio.weights", "llm.weights", "vision.weights",
    ]  # fmt: skip
    found = load_file(convert(ours, tmp_path / "back") / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert found[name].tobytes() == tensor.tobytes(), name


def test_the_omni_family_casts_all_but_the_router_bias_and_quantizes_the_language_model_alone(tmp_path):
    source = write_folder(tmp_path / "hf", TINY_OMNI, omni_tensors())
    ours = convert(source, tmp_path / "ours", "--dtype", "float32")
    quantized = convert(ours, tmp_path / "quantized", "--quantize", "nvfp4", "--dtype", "bfloat16")
    held = CheckpointTensors(quantized)
    kinds = {name: held.info(name).dtype.name for name in held}
    assert kinds["language_model.backbone.layers.1.mixer.gate.e_score_correction_bias"] == "float32"
    assert kinds["sound_encoder.encoder.layers.0.conv.norm.num_batches_tracked"] == "int64"
    assert kinds["language_model.backbone.layers.1.mixer.experts.3.up_proj.weight"] == "uint8"
    assert kinds["language_model.backbone.layers.0.mixer.in_proj.weight"] == "float8_e4m3fn"
    assert kinds["language_model.backbone.layers.2.mixer.q_proj.weight"] == "bfloat16"
    assert not [n for n, kind in kinds.items() if kind in ("uint8", "float8_e4m3fn") and "language_model" not in n]


def test_a_layer_scale_that_is_not_one_is_reported(tmp_path, capsys):
    name = "vision_model.radio_model.model.blocks.1.layer_scale1.lambda1"
    tensors = omni_tensors() | {name: np.full(32, 0.5, np.float32)}
    message = refused(capsys, "--from", write_folder(tmp_path / "hf", TINY_OMNI, tensors), "--to", tmp_path / "ours")
    assert f"{name} is not all ones" in message


def test_a_tower_comes_back_with_the_text_tower_beside_it(tmp_path):
    tower = {
        "model_type": "siglip2_vision_model", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 48, "patch_size": 4, "num_patches": 16,
    }  # fmt: skip
    whole = {"model_type": "siglip2", "vision_config": tower, "text_config": {}}
    passengers = {
        "text_model.encoder.layers.0.mlp.fc1.weight": np.ones((3, 4), np.float32),
        "logit_scale": np.asarray([2.0], np.float32),
        "vision_model.head.probe": np.ones((1, 1, 32), np.float32),
    }
    for hf, more in ((tower, {}), (whole, passengers)):
        tensors = tensors_of(hf) | more
        name = hf["model_type"]
        ours = convert(write_folder(tmp_path / name / "hf", hf, tensors), tmp_path / name / "ours")
        found = load_file(convert(ours, tmp_path / name / "back") / "model.safetensors")
        assert found.keys() == tensors.keys()
        assert all(found[key].tobytes() == tensor.tobytes() for key, tensor in tensors.items())
