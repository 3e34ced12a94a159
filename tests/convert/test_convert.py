"""hetjax convert: what goes in comes out, and what does not fit is told."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from hetjax.checkpoint import Checkpoints, plain
from hetjax.checkpoint.items import read_item
from hetjax.cli import main
from hetjax.config import load_config
from models import DecoderConfig
from models.arrays import arrays_by_path
from models.huggingface.checkpoint import HuggingFaceCheckpoint
from models.huggingface.entry import read_arrays, write_tensors
from models.huggingface.families import FAMILIES
from models.huggingface.tensors import CheckpointTensors
from tests.models.huggingface.folders import LLAMA, QWEN3_MOE, tensors_of, write_folder
from tests.models.huggingface.omni_configs import TINY as TINY_OMNI

FORMS = {"llama": LLAMA, "qwen3 with experts": QWEN3_MOE}


def convert(source: Path, target: Path, *options: str) -> Path:
    main(["convert", "--from", str(source), "--to", str(target), *options])
    return target


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as exit:
        main(["convert", *map(str, arguments)])
    assert exit.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", FORMS)
def test_out_of_hugging_face_and_back_every_byte_is_the_same(tmp_path, name):
    tensors = tensors_of(FORMS[name])
    source = write_folder(tmp_path / "hf", FORMS[name], tensors, shards=3)
    back = convert(convert(source, tmp_path / "ours"), tmp_path / "back")
    found = load_file(back / "model.safetensors")
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
        assert found[key].tobytes() == tensor.tobytes(), key
    for file in ("tokenizer.json", "chat_template.jinja"):
        assert (back / file).read_bytes() == (source / file).read_bytes()
    assert json.loads((back / "config.json").read_text()) == FORMS[name]


@pytest.mark.parametrize("name", FORMS)
def test_the_converted_arrays_are_those_of_the_entries_and_orbax_reads_them(tmp_path, name):
    hf, tensors = FORMS[name], tensors_of(FORMS[name], np.float32)
    ours = convert(write_folder(tmp_path / "hf", hf, tensors), tmp_path / "ours")
    family = FAMILIES["llama" if hf is LLAMA else "qwen3"]
    configs = family.read_config(hf)
    shapes = arrays_by_path(family.module("llm", configs))
    expected = read_arrays(family.entries(configs)["llm"], tensors, shapes)
    tree = {}
    for path, array in expected.items():
        node = tree
        *parents, last = ("params", *path.split("/"))
        for key in parents:
            node = node.setdefault(key, {})
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        node[last] = jax.ShapeDtypeStruct(array.shape, jnp.float32, sharding=sharding)
    found = jax.tree_util.tree_leaves_with_path(read_item(ours / "0" / "llm.weights", tree))
    assert len(found) == len(expected)
    for path, array in found:
        name = "/".join(key.key for key in path[1:])
        np.testing.assert_array_equal(np.asarray(array), expected[name])


def test_the_settings_of_the_model_come_with_it(tmp_path):
    ours = convert(write_folder(tmp_path / "hf", LLAMA, tensors_of(LLAMA)), tmp_path / "ours")
    held = yaml.safe_load((ours / "model.yaml").read_text())["model"]["llm"]
    assert DecoderConfig(**held) == FAMILIES["llama"].read_config(LLAMA)["llm"]


def test_a_dtype_is_cast_to_and_told(tmp_path):
    tensors = tensors_of(LLAMA, np.float32)
    source = write_folder(tmp_path / "hf", {**LLAMA, "torch_dtype": "float32"}, tensors)
    back = convert(convert(source, tmp_path / "ours"), tmp_path / "back", "--dtype", "bfloat16")
    for name, tensor in load_file(back / "model.safetensors").items():
        np.testing.assert_array_equal(tensor, tensors[name].astype(ml_dtypes.bfloat16))
    assert json.loads((back / "config.json").read_text())["torch_dtype"] == "bfloat16"
    cast = convert(source, tmp_path / "cast", "--dtype", "bfloat16")
    assert "bfloat16" in (cast / "0" / "description" / "metadata").read_text()


# ── what does not fit ────────────────────────────────────────────────────────────────────────────────


def test_missing_tensors_are_listed_and_the_rest_counted(tmp_path, capsys):
    tensors = {name: tensor for name, tensor in tensors_of(LLAMA).items() if "layers.1" not in name}
    told = refused(capsys, "--from", write_folder(tmp_path / "hf", LLAMA, tensors), "--to", tmp_path / "ours")
    assert "lacks 9 tensors of module 'llm': model.layers.1.input_layernorm.weight" in told
    assert "and 1 more" in told
    assert not (tmp_path / "ours").exists()


def test_unexpected_tensors_are_listed_and_can_be_left_out(tmp_path, capsys):
    tensors = tensors_of(LLAMA)
    more = {"model.layers.0.self_attn.q_proj.bias": np.zeros(3, np.float32), "x.inv_freq": np.ones(2, np.float32)}
    source = write_folder(tmp_path / "hf", LLAMA, {**tensors, **more, "a.rotary_emb.inv_freq": np.ones(2, np.float32)})
    told = refused(capsys, "--from", source, "--to", tmp_path / "ours")
    assert "holds 2 tensors that no module of family 'llama' takes: " in told
    assert "q_proj.bias" in told and "x.inv_freq" in told and "--allow_unexpected true" in told
    ours = convert(source, tmp_path / "ours", "--allow_unexpected", "true", "--json")
    assert sorted(json.loads(capsys.readouterr().out)["left_out"]) == sorted(more)
    assert load_file(convert(ours, tmp_path / "back") / "model.safetensors").keys() == tensors.keys()


def test_wrong_shapes_are_told_with_both(tmp_path, capsys):
    tensors = tensors_of(LLAMA)
    name = "model.layers.2.mlp.up_proj.weight"
    source = write_folder(tmp_path / "hf", LLAMA, {**tensors, name: tensors[name][:, :-1].copy()})
    told = refused(capsys, "--from", source, "--to", tmp_path / "ours")
    assert f"{name} of shape (48, 31) does not fit the sizes in config.json" in told
    source = write_folder(tmp_path / "other", LLAMA, {**tensors, "model.norm.weight": np.ones(31, np.float32)})
    told = refused(capsys, "--from", source, "--to", tmp_path / "ours")
    assert "model.norm.weight of shape (31,) would be (31,) of norm/scale (32,) in module 'llm'" in told


def test_a_damaged_file_an_unknown_family_and_a_wrong_folder_are_told(tmp_path, capsys):
    source = write_folder(tmp_path / "hf", LLAMA, tensors_of(LLAMA))
    path = source / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "cut short: tensor" in refused(capsys, "--from", source, "--to", tmp_path / "ours")
    path.write_bytes(whole)
    (source / "config.json").write_text(json.dumps({**LLAMA, "model_type": "bloom"}))
    told = refused(capsys, "--from", source, "--to", tmp_path / "ours")
    assert "model_type 'bloom'" in told and "llama" in told
    (source / "config.json").write_text("{")
    assert "cannot be read as JSON" in refused(capsys, "--from", source, "--to", tmp_path / "ours")
    assert "there is no" in refused(capsys, "--from", tmp_path / "nowhere", "--to", tmp_path / "ours")
    assert "there is no checkpoint" in refused(capsys, "--from", tmp_path, "--to", tmp_path / "ours")


def test_nothing_is_written_over(tmp_path, capsys):
    source = write_folder(tmp_path / "hf", LLAMA, tensors_of(LLAMA))
    ours = convert(source, tmp_path / "ours")
    assert "has a checkpoint already" in refused(capsys, "--from", source, "--to", ours)
    assert "is not empty" in refused(capsys, "--from", ours, "--to", source)


def test_a_checkpoint_is_refused_beside_a_config_of_another_model(tmp_path, capsys):
    ours = convert(write_folder(tmp_path / "hf", LLAMA, tensors_of(LLAMA)), tmp_path / "ours")
    other = {**LLAMA, "hidden_size": 64}
    like = write_folder(tmp_path / "other", other, {"x": np.zeros(1, np.float32)})
    told = refused(capsys, "--from", ours, "--to", tmp_path / "back", "--like", like)
    assert "config.json makes embedding of shape (264, 64), but" in told and "has it in shape (264, 32)" in told


# ── quantized ────────────────────────────────────────────────────────────────────────────────────────


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
    from models.huggingface.shards import ShardWriter
    from models.huggingface.tensors import TensorInfo

    with ShardWriter(folder, {n: TensorInfo(t.shape, t.dtype) for n, t in tensors.items()}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    (folder / "config.json").write_text(json.dumps(hf))


def test_quantized_weights_without_scales_or_with_another_config_are_told(tmp_path, capsys):
    ours = convert(write_folder(tmp_path / "hf", QWEN3_MOE, tensors_of(QWEN3_MOE)), tmp_path / "ours")
    quantized = convert(ours, tmp_path / "quantized", "--quantize", "nvfp4")
    hf, tensors = json.loads((quantized / "config.json").read_text()), load_quantized(quantized)
    module = "model.layers.0.mlp.experts.0.up_proj"
    write_quantized(quantized, hf, {n: t for n, t in tensors.items() if n != f"{module}.weight_scale_2"})
    told = refused(capsys, "--from", quantized, "--to", tmp_path / "x")
    assert f"{module}.weight is uint8, but the checkpoint has no {module}.weight_scale_2" in told
    del hf["quantization_config"]["quantized_layers"][module]
    write_quantized(quantized, hf, tensors)
    told = refused(capsys, "--from", quantized, "--to", tmp_path / "x")
    assert f"{module}.weight is nvfp4, the config says not quantized" in told


def test_a_dense_model_has_no_nvfp4_release(tmp_path, capsys):
    ours = convert(write_folder(tmp_path / "hf", LLAMA, tensors_of(LLAMA)), tmp_path / "ours")
    told = refused(capsys, "--from", ours, "--to", tmp_path / "x", "--quantize", "nvfp4")
    assert "no routed experts" in told
    assert "--quantize is for writing" in refused(
        capsys, "--from", tmp_path / "hf", "--to", tmp_path / "x", "--quantize", "fp8"
    )


def test_a_single_file_of_any_name_is_read(tmp_path):
    tensors = tensors_of(LLAMA)
    source = write_folder(tmp_path / "hf", LLAMA, tensors)
    (source / "model.safetensors").unlink()
    save_file(tensors, source / "weights.safetensors")
    assert len(HuggingFaceCheckpoint(source).tensors) == len(tensors)


# ── the omni-modal family ────────────────────────────────────────────────────────────────────────────


def omni_tensors() -> dict[str, np.ndarray]:
    """Those of the modules, and the passengers of a saved checkpoint."""
    random = np.random.default_rng(1)
    tensors = tensors_of(TINY_OMNI)
    for name in tensors:
        if name.endswith("e_score_correction_bias"):
            tensors[name] = tensors[name].astype(np.float32)
        if name.endswith("num_batches_tracked"):
            tensors[name] = np.asarray(7, np.int64)
    vision, sound = "vision_model.radio_model.", "sound_encoder.encoder.feature_extractor.featurizer."
    return tensors | {
        f"{vision}input_conditioner.norm_mean": random.normal(size=(3, 1, 1)).astype(np.float32),
        f"{vision}input_conditioner.norm_std": random.normal(size=(3, 1, 1)).astype(np.float32),
        f"{vision}summary_idxs": np.asarray([0, 1]),
        f"{vision}model.blocks.1.layer_scale1.lambda1": np.ones(32, ml_dtypes.bfloat16),
        f"{sound}fb": random.normal(size=(1, 16, 257)).astype(np.float32),
        f"{sound}window": random.normal(size=400).astype(np.float32),
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


def test_a_layer_scale_that_is_not_one_is_told(tmp_path, capsys):
    name = "vision_model.radio_model.model.blocks.1.layer_scale1.lambda1"
    tensors = omni_tensors() | {name: np.full(32, 0.5, np.float32)}
    told = refused(capsys, "--from", write_folder(tmp_path / "hf", TINY_OMNI, tensors), "--to", tmp_path / "ours")
    assert f"{name} is not all ones" in told


# ── what a run trained ───────────────────────────────────────────────────────────────────────────────


def test_a_run_is_written_by_its_own_settings_or_like_another_folder(tmp_path, capsys, make_trainer, tiny_yaml):
    trainer = make_trainer()
    state = trainer.init(5)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1, trainer=trainer)
    checkpoints.save(state, {})
    checkpoints.close()
    told = refused(capsys, "--from", tmp_path / "run", "--to", tmp_path / "back")
    assert "was not converted from a Hugging Face folder; give --like" in told
    (tmp_path / "run" / "config.yaml").write_text(tiny_yaml.read_text())
    back = convert(tmp_path / "run", tmp_path / "back", "--family", "llama")
    config = json.loads((back / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"], config["num_hidden_layers"]) == ("llama", 24, 3)
    family = FAMILIES["llama"]
    entries = family.entries(family.read_config(config))["llm"]
    expected = write_tensors(entries, trainer.weights(state)["llm"])
    like = write_folder(tmp_path / "like", config, tensors_of(config))
    for folder in (back, convert(tmp_path / "run", tmp_path / "second", "--like", str(like))):
        found = load_file(folder / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].tobytes() == tensor.tobytes(), name
    assert (tmp_path / "second" / "tokenizer.json").exists()


def test_the_settings_that_were_written_make_a_run_of_the_model(tmp_path, tiny_yaml):
    hf = {**LLAMA, "vocab_size": 40, "hidden_size": 24, "head_dim": 6}
    ours = convert(write_folder(tmp_path / "hf", hf, tensors_of(hf)), tmp_path / "ours")
    config, _ = load_config(["--config", str(tiny_yaml), "--config", str(ours / "model.yaml")])
    assert config.model.llm == FAMILIES["llama"].read_config(hf)["llm"]


def test_chunks_cover_an_array_and_are_no_larger_than_asked(monkeypatch):
    monkeypatch.setattr(plain, "CHUNK_BYTES", 1000)
    for shape, rows in (((5, 3, 40, 7), 2), ((100, 30), 0), ((4, 6), 1), ((3,), 0), ((2, 5000), 1), ((), 0)):
        chunks = plain.chunk_shape(shape, np.dtype(np.float32), rows)
        assert chunks[:rows] == (1,) * rows
        assert np.prod(chunks) * 4 <= 1000 or chunks[:-1] == (1,) * (len(shape) - 1)
        filled = np.zeros(shape)
        for box in plain.boxes(shape, chunks):
            filled[box] += 1
        assert (filled == 1).all()
