"""Folders of Hugging Face checkpoints that are odd: read as transformers reads them, or refused by name."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hetjax.models import ModelError
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from hetjax.models.huggingface.llama import llama_config
from tests.harness.convert_tool import convert, refused
from tests.harness.huggingface.folders import LLAMA, tensors_of, write_folder

WEIGHT = "model.layers.1.mlp.down_proj.weight"


def down(checkpoint: HuggingFaceCheckpoint) -> np.ndarray:
    """The weight above, as [out, in]."""
    width, hidden = LLAMA["hidden_size"], LLAMA["intermediate_size"]
    box = slice(1, 2), slice(0, hidden), slice(0, width)
    return np.asarray(checkpoint.read("llm", "layers/block/mlp/down/kernel", box)[0]).T


# ── which file ───────────────────────────────────────────────────────────────────────────────────────


def test_one_file_wins_over_an_old_index_and_stands_beside_other_files(tmp_path):
    old, new = tensors_of(LLAMA, seed=1), tensors_of(LLAMA, seed=2)
    source = write_folder(tmp_path / "hf", LLAMA, old, shards=2)
    save_file(new, source / "model.safetensors")
    save_file({"lora": np.ones(2, np.float32)}, source / "adapter_model.safetensors")
    found = HuggingFaceCheckpoint(source)
    assert not found.unexpected()
    assert down(found).tobytes() == new[WEIGHT].tobytes()
    (source / "model.safetensors.index.json").unlink()
    assert down(HuggingFaceCheckpoint(source)).tobytes() == new[WEIGHT].tobytes()


def test_files_of_which_none_is_the_model_are_refused(tmp_path):
    source = write_folder(tmp_path / "hf", LLAMA, tensors_of(LLAMA))
    (source / "model.safetensors").rename(source / "a.safetensors")
    save_file({"x": np.ones(2, np.float32)}, source / "b.safetensors")
    with pytest.raises(ModelError, match=r"holds a.safetensors, b.safetensors, but neither model.safetensors nor"):
        HuggingFaceCheckpoint(source)


# ── heads ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_head_of_its_own_under_tied_embeddings_is_refused(tmp_path, capsys):
    tied = {**LLAMA, "tie_word_embeddings": True}
    tensors = tensors_of(tied)
    head = tensors["model.embed_tokens.weight"].copy()
    head[7, 3] += 1
    source = write_folder(tmp_path / "hf", tied, {**tensors, "lm_head.weight": head})
    message = refused(capsys, "--from", source, "--to", tmp_path / "ours", "--allow_unexpected", "true")
    assert "lm_head.weight differs from model.embed_tokens.weight" in message
    assert "set tie_word_embeddings to false" in message
    (source / "config.json").write_text(json.dumps({**tied, "tie_word_embeddings": False}))
    back = convert(convert(source, tmp_path / "ours"), tmp_path / "back")
    assert load_file(back / "model.safetensors")["lm_head.weight"].tobytes() == head.tobytes()


# ── quantized weights ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e5m2])
def test_weights_of_a_dtype_that_is_not_read_are_refused_with_or_without_a_config(tmp_path, capsys, dtype):
    tensors = tensors_of(LLAMA)
    tensors[WEIGHT] = np.ones(tensors[WEIGHT].shape, np.int8).astype(dtype)
    scale = f"{WEIGHT}_scale"
    tensors[scale] = np.ones((32, 1), np.float32)
    source = tmp_path / "hf"
    source.mkdir()
    write_any(source, tensors)
    (source / "config.json").write_text(json.dumps(LLAMA))
    message = refused(capsys, "--from", source, "--to", tmp_path / "ours", "--allow_unexpected", "true")
    assert f"{WEIGHT} is {np.dtype(dtype).name}, a quantized form that is not read" in message


@pytest.mark.parametrize("method", ["compressed-tensors", "bitsandbytes", "gptq", "awq"])
@pytest.mark.parametrize("place", ["", "text_config"])
def test_other_methods_of_quantization_are_refused_by_name(tmp_path, method, place):
    said = {"quantization_config": {"quant_method": method}}
    hf = {**LLAMA, **({place: said} if place else said)}
    source = write_folder(tmp_path / "hf", LLAMA, tensors_of(LLAMA))
    (source / "config.json").write_text(json.dumps(hf))
    with pytest.raises(ModelError, match=f"{method}|text_config"):
        HuggingFaceCheckpoint(source)


def test_a_scale_that_belongs_to_no_quantized_weight_is_unexpected(tmp_path):
    tensors = {**tensors_of(LLAMA), f"{WEIGHT}_scale": np.ones((), np.float32)}
    found = HuggingFaceCheckpoint(write_folder(tmp_path / "hf", LLAMA, tensors))
    assert found.unexpected() == [f"{WEIGHT}_scale"]


@pytest.mark.parametrize("block", [(8, 16), (32, 48), (20, 32), None])
def test_fp8_by_blocks_is_dequantized_by_the_scales_of_its_blocks(tmp_path, block):
    random, tensors = np.random.default_rng(0), tensors_of(LLAMA)
    rows, columns = tensors[WEIGHT].shape
    quantized = random.normal(size=(rows, columns)).astype(ml_dtypes.float8_e4m3fn)
    height, width = block or (rows, columns)
    scales = random.uniform(0.5, 2, (-(-rows // height), -(-columns // width))).astype(np.float32)
    given = scales if block else scales.reshape(())
    said = {"quant_method": "fp8", "weight_block_size": block}
    source = tmp_path / "hf"
    source.mkdir()
    write_any(source, {**tensors, WEIGHT: quantized, f"{WEIGHT}_scale_inv": given})
    (source / "config.json").write_text(json.dumps({**LLAMA, "quantization_config": said}))
    found = HuggingFaceCheckpoint(source, dtype=np.dtype(np.float32))
    want = np.zeros((rows, columns), np.float32)
    for row, column in np.ndindex(rows, columns):
        want[row, column] = np.float32(quantized[row, column]) * scales[row // height, column // width]
    np.testing.assert_array_equal(down(found), want)
    assert not found.unexpected() and found.tensors.forms == {WEIGHT: "fp8_blocks"}
    ours = convert(source, tmp_path / "ours")
    back = convert(ours, tmp_path / "back")
    np.testing.assert_array_equal(load_file(back / "model.safetensors")[WEIGHT], want.astype(ml_dtypes.bfloat16))
    assert "quantization_config" not in json.loads((back / "config.json").read_text())


def test_scales_that_are_no_blocks_of_their_weight_are_refused(tmp_path):
    tensors = tensors_of(LLAMA)
    quantized = tensors[WEIGHT].astype(ml_dtypes.float8_e4m3fn)
    source = tmp_path / "hf"
    source.mkdir()
    said = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    (source / "config.json").write_text(json.dumps({**LLAMA, "quantization_config": said}))
    write_any(source, {**tensors, WEIGHT: quantized, f"{WEIGHT}_scale_inv": np.ones((5, 3), np.float32)})
    with pytest.raises(ModelError, match=r"scale_inv has shape \(5, 3\), which are no blocks of weight_block_size"):
        HuggingFaceCheckpoint(source)
    write_any(source, {**tensors, WEIGHT: quantized, f"{WEIGHT}_scale": np.ones((), np.float32)})
    with pytest.raises(ModelError, match=r"quant_method is 'fp8', but .* is fp8;"):
        HuggingFaceCheckpoint(source)


def write_any(folder, tensors) -> None:
    """Tensors of dtypes that the safetensors library does not write from numpy, too."""
    from hetjax.models.huggingface.tensor_files.shards import ShardWriter
    from hetjax.models.huggingface.tensor_files.tensors import TensorInfo

    with ShardWriter(folder, {name: TensorInfo(each.shape, each.dtype) for name, each in tensors.items()}) as writer:
        for name, each in tensors.items():
            writer.write(name, each)


# ── config.json ──────────────────────────────────────────────────────────────────────────────────────


def test_rope_parameters_for_each_type_of_layer_are_those_of_its_layers():
    plain = {key: value for key, value in LLAMA.items() if not key.startswith("rope")}
    of = lambda theta, **more: {"rope_type": "default", "rope_theta": theta, **more}  # noqa: E731
    nested = {**plain, "rope_parameters": {"full_attention": of(5e5), "sliding_attention": of(1e4)}}
    assert llama_config(nested).rope_theta == 5e5
    assert llama_config({**nested, "layer_types": ["full_attention"] * 3}).rope_theta == 5e5
    with pytest.raises(ModelError, match=r"rope_parameters = .* for layers of full_attention; only layers that all"):
        llama_config({**plain, "rope_parameters": {"sliding_attention": of(1e4)}})
    with pytest.raises(ModelError, match="its rope parameters hold mrope_section"):
        llama_config({**plain, "rope_parameters": of(1e4, mrope_section=[2, 2])})


def test_a_family_that_is_given_stands_for_the_model_type(tmp_path, capsys):
    tensors = tensors_of(LLAMA)
    source = write_folder(tmp_path / "hf", {**LLAMA, "model_type": "mistral", "sliding_window": None}, tensors)
    assert "model_type 'mistral'" in refused(capsys, "--from", source, "--to", tmp_path / "ours")
    ours = convert(source, tmp_path / "ours", "--family", "llama")
    back = convert(ours, tmp_path / "back")
    assert load_file(back / "model.safetensors").keys() == tensors.keys()
    assert json.loads((back / "config.json").read_text())["model_type"] == "mistral"
    (source / "config.json").write_text(json.dumps({**LLAMA, "model_type": "mistral", "sliding_window": 4096}))
    message = refused(capsys, "--from", source, "--to", tmp_path / "other", "--family", "llama")
    assert "config.json of llama: sliding_window = 4096 is not known here" in message


def test_keys_that_nobody_reads_are_refused_unless_they_change_no_number():
    neutral = {"bos_token_id": 1, "use_cache": False, "_name_or_path": "x", "transformers_version": "5.0", "new": None}
    assert llama_config({**LLAMA, **neutral}) == llama_config(LLAMA)
    with pytest.raises(ModelError, match=r"logit_scale = 0.5, residual_multiplier = 2.0 is not known here"):
        llama_config({**LLAMA, "residual_multiplier": 2.0, "logit_scale": 0.5})
