"""FP8 and NVFP4 checkpoints, written and read."""

import json
from pathlib import Path

import numpy as np
import pytest

from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from hetjax.models.huggingface.tensor_files.tensors import CheckpointTensors
from tests.harness.convert_tool import FORMS, convert, refused
from tests.harness.huggingface.folders import LLAMA, QWEN3_MOE, tensors_of, write_folder


def dequantized_by_hand(folder: Path, name: str) -> np.ndarray:
    """One weight in float64, from the tensors of its module."""
    tensors, module = CheckpointTensors(folder), name.removesuffix(".weight")
    if tensors.info(name).dtype != np.uint8:
        return tensors[name].astype(np.float64) * np.float64(tensors[f"{module}.weight_scale"])
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    values = np.asarray(magnitudes + [-each for each in magnitudes], np.float64)
    packed = tensors[name]
    weight = np.zeros((packed.shape[0], 2 * packed.shape[1]))
    for row, column in np.ndindex(*weight.shape):
        code = packed[row, column // 2] >> 4 if column % 2 else packed[row, column // 2] & 15
        weight[row, column] = values[code] * np.float64(tensors[f"{module}.weight_scale"][row, column // 16])
    return weight * np.float64(tensors[f"{module}.weight_scale_2"])


@pytest.mark.parametrize(("name", "form"), [("llama", "fp8"), ("qwen3 with experts", "nvfp4")])
def test_a_quantized_checkpoint_is_written_and_read_again(tmp_path, name, form):
    hf, tensors = FORMS[name], tensors_of(FORMS[name])
    ours = convert(write_folder(tmp_path / "hf", hf, tensors), tmp_path / "ours")
    quantized = convert(ours, tmp_path / "quantized", "--quantize", form)
    held = CheckpointTensors(quantized)
    linear = ("in_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    expected = {n for n in tensors if n.split(".")[-2] in linear}
    if form == "nvfp4":
        expected = {n for n in tensors if "experts." in n or "o_proj" in n}
    assert {n for n in tensors if held.info(n).dtype != tensors[n].dtype} == expected
    assert {n for n in held if n.endswith("input_scale")} == {
        n.removesuffix("weight") + "input_scale" for n in expected
    }
    assert all(held[n] == 1 for n in held if n.endswith("input_scale"))
    plain = HuggingFaceCheckpoint(quantized).tensors
    for n in expected:
        assert plain.forms[n] == ("nvfp4" if "experts." in n else "fp8")
        exact = dequantized_by_hand(quantized, n)
        np.testing.assert_allclose(plain[n].astype(np.float64), exact, rtol=2.0**-8)
        largest = np.abs(tensors[n].astype(np.float64)).max()
        error = np.abs(exact - tensors[n].astype(np.float64)).max()
        assert error <= largest * (1 / 6 if plain.forms[n] == "nvfp4" else 2.0**-4)
    config = json.loads((quantized / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "modelopt"
    assert config["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}
    if form == "nvfp4":
        assert config["quant_algo"] == "MIXED_PRECISION"
        assert {f"{module}.weight" for module in config["quantized_layers"]} == expected
        assert config["quantized_layers"]["model.layers.0.mlp.experts.3.up_proj"] == {
            "quant_algo": "NVFP4", "group_size": 16,
        }  # fmt: skip
    else:
        assert "lm_head" in config["ignore"]
    # Dequantized and quantized once more, nothing changes but what bfloat16 rounds.
    again = convert(
        convert(quantized, tmp_path / "again", "--dtype", "float32"), tmp_path / "twice", "--quantize", form
    )
    for n in expected:
        np.testing.assert_allclose(
            dequantized_by_hand(again, n), dequantized_by_hand(quantized, n), rtol=1e-5, atol=1e-9
        )


def test_what_was_calibrated_is_kept_and_the_scheme_of_the_cache(tmp_path):
    ours = convert(write_folder(tmp_path / "hf", LLAMA, tensors_of(LLAMA)), tmp_path / "ours")
    quantized = convert(ours, tmp_path / "quantized", "--quantize", "fp8")
    tensors = load_quantized(quantized)
    tensors["model.layers.0.mlp.up_proj.input_scale"] = np.asarray(0.25, np.float32)
    tensors["model.layers.0.self_attn.k_proj.k_scale"] = np.asarray(0.5, np.float32)
    hf = json.loads((quantized / "config.json").read_text())
    hf["quantization_config"]["kv_cache_scheme"] = {"dynamic": False, "num_bits": 4, "type": "float"}
    (quantized / "hf_quant_config.json").write_text("{}")
    write_quantized(quantized, hf, tensors)
    ours = convert(quantized, tmp_path / "ours-2")
    plain = convert(ours, tmp_path / "plain")
    assert not [n for n in CheckpointTensors(plain) if n.endswith("_scale")]
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    assert not (plain / "hf_quant_config.json").exists()
    again = convert(ours, tmp_path / "again", "--quantize", "fp8")
    held = CheckpointTensors(again)
    assert held["model.layers.0.mlp.up_proj.input_scale"] == 0.25
    assert held["model.layers.1.mlp.up_proj.input_scale"] == 1
    assert held["model.layers.0.self_attn.k_proj.k_scale"] == 0.5
    config = json.loads((again / "config.json").read_text())["quantization_config"]
    assert config["kv_cache_scheme"]["num_bits"] == 4


def load_quantized(folder: Path) -> dict[str, np.ndarray]:
    held = CheckpointTensors(folder)
    return {name: np.array(held[name]) for name in held}


def write_quantized(folder: Path, hf: dict, tensors: dict[str, np.ndarray]) -> None:
    from hetjax.models.huggingface.tensor_files.shards import ShardWriter
    from hetjax.models.huggingface.tensor_files.tensors import TensorInfo

    with ShardWriter(folder, {n: TensorInfo(t.shape, t.dtype) for n, t in tensors.items()}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    (folder / "config.json").write_text(json.dumps(hf))


def test_quantized_weights_without_scales_or_with_another_config_are_reported(tmp_path, capsys):
    ours = convert(write_folder(tmp_path / "hf", QWEN3_MOE, tensors_of(QWEN3_MOE)), tmp_path / "ours")
    quantized = convert(ours, tmp_path / "quantized", "--quantize", "nvfp4")
    hf, tensors = json.loads((quantized / "config.json").read_text()), load_quantized(quantized)
    module = "model.layers.0.mlp.experts.0.up_proj"
    write_quantized(quantized, hf, {n: t for n, t in tensors.items() if n != f"{module}.weight_scale_2"})
    message = refused(capsys, "--from", quantized, "--to", tmp_path / "x")
    assert f"{module}.weight is uint8, but the checkpoint has no {module}.weight_scale_2" in message
    del hf["quantization_config"]["quantized_layers"][module]
    write_quantized(quantized, hf, tensors)
    message = refused(capsys, "--from", quantized, "--to", tmp_path / "x")
    assert f"{module}.weight is nvfp4, the config says not quantized" in message


def test_a_dense_model_has_no_nvfp4_release(tmp_path, capsys):
    ours = convert(write_folder(tmp_path / "hf", LLAMA, tensors_of(LLAMA)), tmp_path / "ours")
    message = refused(capsys, "--from", ours, "--to", tmp_path / "x", "--quantize", "nvfp4")
    assert "no routed experts" in message
    assert "--quantize is for writing" in refused(
        capsys, "--from", tmp_path / "hf", "--to", tmp_path / "x", "--quantize", "fp8"
    )
