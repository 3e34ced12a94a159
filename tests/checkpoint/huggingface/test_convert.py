"""hetjax convert: every byte of an imported checkpoint is exported again, and weights that do not fit are reported."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from hetjax.checkpoint import Checkpoints
from hetjax.checkpoint import array_files as plain
from hetjax.checkpoint.huggingface.run_files import RunPrompts
from hetjax.checkpoint.items import read_item
from hetjax.config.run_config import load_config
from hetjax.data.chat import load_tokenizer
from hetjax.models import DecoderConfig
from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from hetjax.models.huggingface.families import FAMILIES
from tests.harness.convert_tool import FORMS, convert, refused
from tests.harness.huggingface.folders import LLAMA, tensors_of, write_folder
from tests.harness.huggingface.whole_models import read_arrays, write_tensors


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


def test_a_dtype_is_cast_to_and_reported(tmp_path):
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
    message = refused(capsys, "--from", write_folder(tmp_path / "hf", LLAMA, tensors), "--to", tmp_path / "ours")
    assert "lacks 9 tensors of module 'llm': model.layers.1.input_layernorm.weight" in message
    assert "and 1 more" in message
    assert not (tmp_path / "ours").exists()


def test_unexpected_tensors_are_listed_and_can_be_left_out(tmp_path, capsys):
    tensors = tensors_of(LLAMA)
    more = {"model.layers.0.self_attn.q_proj.bias": np.zeros(3, np.float32), "x.inv_freq": np.ones(2, np.float32)}
    source = write_folder(tmp_path / "hf", LLAMA, {**tensors, **more, "a.rotary_emb.inv_freq": np.ones(2, np.float32)})
    message = refused(capsys, "--from", source, "--to", tmp_path / "ours")
    assert "holds 2 tensors that no module of family 'llama' takes: " in message
    assert "q_proj.bias" in message and "x.inv_freq" in message and "--allow_unexpected true" in message
    ours = convert(source, tmp_path / "ours", "--allow_unexpected", "true", "--json")
    assert sorted(json.loads(capsys.readouterr().out)["left_out"]) == sorted(more)
    assert load_file(convert(ours, tmp_path / "back") / "model.safetensors").keys() == tensors.keys()


def test_a_copy_of_tied_embeddings_is_left_out_and_a_head_that_is_none_is_not_taken_for_one(tmp_path):
    tied = {**LLAMA, "tie_word_embeddings": True}
    tensors = tensors_of(tied)
    copied = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
    ours = convert(write_folder(tmp_path / "hf", tied, copied), tmp_path / "ours")
    assert load_file(convert(ours, tmp_path / "back") / "model.safetensors").keys() == tensors.keys()
    ours = convert(write_folder(tmp_path / "untied", LLAMA, tensors_of(LLAMA)), tmp_path / "whole")
    assert "lm_head.weight" in load_file(convert(ours, tmp_path / "again") / "model.safetensors")


def test_wrong_shapes_are_reported_with_both(tmp_path, capsys):
    tensors = tensors_of(LLAMA)
    name = "model.layers.2.mlp.up_proj.weight"
    source = write_folder(tmp_path / "hf", LLAMA, {**tensors, name: tensors[name][:, :-1].copy()})
    message = refused(capsys, "--from", source, "--to", tmp_path / "ours")
    assert f"{name} of shape (48, 31) does not fit the sizes in config.json" in message
    source = write_folder(tmp_path / "other", LLAMA, {**tensors, "model.norm.weight": np.ones(31, np.float32)})
    message = refused(capsys, "--from", source, "--to", tmp_path / "ours")
    assert "model.norm.weight of shape (31,) would be (31,) of norm/scale (32,) in module 'llm'" in message


def test_a_damaged_file_an_unknown_family_and_a_wrong_folder_are_reported(tmp_path, capsys):
    source = write_folder(tmp_path / "hf", LLAMA, tensors_of(LLAMA))
    path = source / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "cut short: tensor" in refused(capsys, "--from", source, "--to", tmp_path / "ours")
    path.write_bytes(whole)
    (source / "config.json").write_text(json.dumps({**LLAMA, "model_type": "bloom"}))
    message = refused(capsys, "--from", source, "--to", tmp_path / "ours")
    assert "model_type 'bloom'" in message and "llama" in message
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
    message = refused(capsys, "--from", ours, "--to", tmp_path / "back", "--like", like)
    assert "config.json makes embedding of shape (264, 64), but" in message and "has it in shape (264, 32)" in message


def test_a_single_file_of_any_name_is_read(tmp_path):
    tensors = tensors_of(LLAMA)
    source = write_folder(tmp_path / "hf", LLAMA, tensors)
    (source / "model.safetensors").unlink()
    save_file(tensors, source / "weights.safetensors")
    assert len(HuggingFaceCheckpoint(source).tensors) == len(tensors)


# ── what a run trained ───────────────────────────────────────────────────────────────────────────────


def test_a_run_is_written_by_its_own_settings_or_like_another_folder(tmp_path, capsys, make_trainer, tiny_yaml):
    trainer = make_trainer("--model.llm.vocab_size", "288")
    state = trainer.init(5)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1, trainer=trainer)
    checkpoints.save(state, {})
    checkpoints.close()
    message = refused(capsys, "--from", tmp_path / "run", "--to", tmp_path / "back")
    assert "was not converted from a Hugging Face folder; give --like" in message
    (tmp_path / "run" / "config.yaml").write_text(tiny_yaml.read_text().replace("vocab_size: 40", "vocab_size: 288"))
    message = refused(capsys, "--from", tmp_path / "run", "--to", tmp_path / "back", "--family", "llama")
    assert "family 'llama' has no place for vision of" in message and "--leave_out vision" in message
    left = ("--leave_out", "vision")
    back = convert(tmp_path / "run", tmp_path / "back", "--family", "llama", *left)
    config = json.loads((back / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 11, 0)
    assert load_tokenizer(back).encode("a<|im_end|>")[1:] == [11]
    assert (config["torch_dtype"], config["max_position_embeddings"]) == ("float32", 12)
    assert (config["model_type"], config["hidden_size"], config["num_hidden_layers"]) == ("llama", 24, 3)
    family = FAMILIES["llama"]
    entries = family.entries(family.read_config(config))["llm"]
    expected = write_tensors(entries, trainer.weights(state)["llm"])
    like = write_folder(tmp_path / "like", config, tensors_of(config))
    for folder in (back, convert(tmp_path / "run", tmp_path / "second", "--like", str(like), *left)):
        found = load_file(folder / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].tobytes() == tensor.tobytes(), name
    assert (tmp_path / "second" / "tokenizer.json").exists()
    message = refused(
        capsys, "--from", tmp_path / "run", "--to", tmp_path / "third", "--like", like, "--leave_out", "llm"
    )
    assert "leave_out names llm, but" in message and "leaves vision behind as a 'llama'" in message


def test_an_export_says_how_prompts_begin_and_end_and_brings_the_tokenizer(tmp_path, make_config):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    words = Tokenizer(WordLevel({"<pad>": 0, "<bos>": 1, "<eos>": 2, "a": 3}, unk_token="a"))
    words.add_special_tokens(["<bos>", "<eos>", "<image>", "<img>", "</img>"])
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<eos>{% endfor %}")
    config = make_config("--data.tokenizer", str(folder / "tokenizer.json"))
    prompts = RunPrompts(config)
    hf = prompts.added_to(FAMILIES["llama"].write_config({"llm": config.model.llm}))
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    assert {key: hf[key] for key in ids} == ids and hf["max_position_embeddings"] == config.data.seq_len
    (tmp_path / "out").mkdir()
    prompts.write(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {**ids, "do_sample": False}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


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
