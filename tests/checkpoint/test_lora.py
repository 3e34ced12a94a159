"""A run that trains low-rank maps: its small checkpoints, the weights that they stand for, and its exports."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import hetjax
from hetjax.checkpoint import Checkpoints
from hetjax.checkpoint.frozen_bases import base_stamps
from hetjax.checkpoint.warm_start import open_warm_start, open_weights
from hetjax.config.build import build_trainer
from hetjax.config.run_config import load_config
from hetjax.errors import ConfigError
from hetjax.models import merge_lora
from hetjax.models.arrays import arrays_by_path
from hetjax.training.resume import compare_bases
from tests.harness.convert_tool import convert, refused
from tests.harness.huggingface.folders import LLAMA, tensors_of, write_folder
from tests.harness.parity.oracle import relative_error

HF = {**LLAMA, "vocab_size": 40, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 6}
LORA = {"llm": {"rank": 2, "alpha": 3.0, "layers": ["attention.query", "attention.output", "down"]}}
OTHER = ("--placement.llm.tensor", "1", "--placement.llm.stage", "2", "--placement.llm.layers", "[1,2]")


@pytest.fixture
def base(tmp_path):
    return write_folder(tmp_path / "hf", HF, tensors_of(HF, np.float32))


@pytest.fixture
def run_folder(tmp_path, tiny_yaml, base):
    """The folder of a run that has done two steps, as train.py leaves it; its trainer and last state."""
    settings = {**yaml.safe_load(tiny_yaml.read_text()), "warm_start": {"llm": str(base)}}
    settings["model"]["lora"] = LORA
    settings["model"]["llm"]["norm_epsilon"] = 1e-5
    tiny_yaml.write_text(yaml.safe_dump(settings))
    config, resolved = load_config(["--config", str(tiny_yaml)])
    trainer = build_trainer(config)
    start = open_warm_start(config.warm_start, ("vision", "llm"))
    state = trainer.init(0, warm_start=start)
    state = moved(state)
    folder = tmp_path / "run"
    checkpoints = Checkpoints(folder / "checkpoints", keep=1, trainer=trainer)
    checkpoints.save(state, {"bases": base_stamps(start, LORA)})
    checkpoints.close()
    (folder / "config.yaml").write_text(resolved)
    return folder, trainer, state


def moved(state):
    """The state with low-rank maps that add something, as after some steps, and the weights of `vision` as they are."""
    random = np.random.default_rng(0)

    def other(path, array):
        if "/lora/" not in path:
            return array
        return jax.device_put(random.normal(size=array.shape).astype(array.dtype), array.sharding)

    def of_stage(stage):
        return dataclasses.replace(stage, params={path: other(path, array) for path, array in stage.params.items()})

    return dataclasses.replace(state, step=2, stages={name: of_stage(stage) for name, stage in state.stages.items()})


def test_other_weights_beside_the_low_rank_maps_are_refused(run_folder, base):
    folder, _, _ = run_folder
    known = base_stamps(open_warm_start({"llm": str(base)}, ("llm",)), LORA)
    assert compare_bases(known, known, "same") == compare_bases({}, known, "same") == []
    assert open_weights(folder).modules
    save_file(tensors_of(HF, np.float32, seed=1), base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"the weights of llm in warm_start .* are not those beside which"):
        open_weights(folder)
    now = base_stamps(open_warm_start({"llm": str(base)}, ("llm",)), LORA)
    with pytest.raises(ConfigError, match="the weights of llm in warm_start are not those"):
        compare_bases(known, now, "same")
    assert compare_bases(known, now, "changed") == [
        "changed since the run was started: the weights of llm beside low-rank maps"
    ]


def test_a_checkpoint_holds_the_low_rank_maps_alone_and_restores_on_another_placement(run_folder, make_trainer):
    folder, trainer, state = run_folder
    held = json.loads((folder / "checkpoints/2/description/metadata").read_text())["modules"]["llm"]
    assert held["params"] and all("/lora/" in path for path in held["params"])
    other = make_trainer(*OTHER)
    checkpoints = Checkpoints(folder / "checkpoints", keep=1, trainer=other)
    with pytest.raises(ConfigError, match=r"low-rank maps of llm, .*warm_start"):
        checkpoints.restore()
    source = open_warm_start({"llm": str(folder.parent / "hf")}, ("vision", "llm"))
    restored, _ = checkpoints.restore(lambda: other.init(1, warm_start=source))
    expected, found = trainer.weights(state), other.weights(restored)
    for module, weights in expected.items():
        for path, array in weights.items():
            np.testing.assert_array_equal(found[module][path], array, err_msg=path)


def test_the_weights_of_a_run_are_the_sums(run_folder):
    folder, _, state = run_folder
    source, merged = open_weights(folder), arrays_by_path(merge_lora(hetjax.module_of(state, "llm")))
    assert source.infos("llm").keys() == merged.keys()
    for path, array in merged.items():
        whole = source.read("llm", path, tuple(slice(0, size) for size in array.shape))
        assert relative_error(whole, np.asarray(array)) < 1e-6, path
    part = source.read("llm", "layers/block/mlp/down/kernel", (slice(1, 3), slice(4, 9), slice(0, 7)))
    assert relative_error(part, np.asarray(merged["layers/block/mlp/down/kernel"])[1:3, 4:9, :7]) < 1e-6


def test_an_adapter_adds_in_peft_what_the_merged_export_holds(run_folder, base, tmp_path):
    folder, *_ = run_folder
    merged = load_file(convert(folder, tmp_path / "merged", "--leave_out", "vision") / "model.safetensors")
    adapter = convert(folder, tmp_path / "adapter", "--adapter", "true")
    settings, tensors = (
        json.loads((adapter / "adapter_config.json").read_text()),
        load_file(adapter / "adapter_model.safetensors"),
    )
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 2, 3.0)
    assert len(settings["target_modules"]) == 3 * 3 and settings["base_model_name_or_path"] == str(base)
    before = load_file(base / "model.safetensors")
    assert merged.keys() == before.keys()
    for name, tensor in before.items():
        target = name.removesuffix(".weight")
        if target in settings["target_modules"]:
            # peft/tuners/lora/layer.py, Linear.get_delta_weight: lora_B @ lora_A * lora_alpha / r
            a, b = (tensors.pop(f"base_model.model.{target}.lora_{part}.weight") for part in "AB")
            tensor = tensor + b @ a * (settings["lora_alpha"] / settings["r"])
        assert relative_error(merged[name], tensor) < 1e-6, name
    assert not tensors


def test_an_adapter_is_asked_for_where_there_is_one(base, tmp_path, capsys):
    ours = convert(base, tmp_path / "ours")
    said = refused(capsys, "--from", ours, "--to", tmp_path / "adapter", "--adapter", "true")
    assert "--adapter is for a run that trained low-rank maps" in said


def test_settings_name_modules_and_maps_that_there_are(make_config):
    with pytest.raises(ConfigError, match=r"model.lora names audio; the modules are vision, llm"):
        make_config("--model.lora", "{audio: {rank: 2}}")
    config = make_config("--model.lora", "{llm: {layers: [attention.query, nowhere]}}")
    with pytest.raises(
        hetjax.models.ModelError, match=r"'nowhere', which is no linear map of LanguageModel; .*mlp.down"
    ):
        build_trainer(config)
    config = make_config("--model.lora", "{llm: {layers: [head]}}")
    with pytest.raises(hetjax.models.ModelError, match=r"'head', which is only the head over a vocabulary"):
        build_trainer(config)
