"""Modules that start from weights of another place: any source, any placement, and what does not fit is reported."""

import json

import jax
import ml_dtypes
import numpy as np
import optax
import pytest

import hetjax
from hetjax.checkpoint import Checkpoints
from hetjax.checkpoint.warm_start import differences, load_into, open_warm_start, open_weights
from hetjax.cli import main
from hetjax.config.run_config import load_config
from hetjax.errors import ConfigError
from hetjax.meshes import Layout, Placement
from hetjax.models import LanguageModel
from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.families import FAMILIES
from tests.harness.huggingface.folders import LLAMA, tensors_of, write_folder
from tests.harness.huggingface.omni_configs import TINY as OMNI
from tests.harness.huggingface.whole_models import read_arrays

# The sizes of the tiny run of tests/conftest.py.
TINY = {
    **LLAMA, "vocab_size": 40, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 6,
}  # fmt: skip
LAYOUTS = {
    "one device": Layout(devices="3"),
    "data, tensor": Layout(data=4, tensor=2),
    "fsdp": Layout(devices="0-3", fsdp=2, data=2),
    "uneven stages": Layout(devices="2-5", stage=2, tensor=2, layers=[1, 2]),
    "chunks": Layout(devices="0,1", fsdp=2, chunks=3),
}


def llm_on(layout, config, **options):
    """A trainer of a language model alone."""
    graph = hetjax.ModuleGraph({"llm": lambda rngs: LanguageModel(config.model.llm, rngs=rngs)})
    schedule = "1f1b" if layout.chunks == 1 else "interleaved_1f1b"
    return hetjax.Trainer(
        graph, Placement({"llm": layout}), optimizer=optax.adamw(1e-3), schedule=schedule, microbatches=2, **options
    )


def expected_arrays(tensors):
    family = FAMILIES["llama"]
    configs = family.read_config(TINY)
    shapes = arrays_by_path(family.module("llm", configs))
    return read_arrays(family.entries(configs)["llm"], tensors, shapes)


@pytest.fixture
def folders(tmp_path):
    """The same weights as a Hugging Face folder and as a converted checkpoint."""
    tensors = tensors_of(TINY, np.float32)
    source = write_folder(tmp_path / "hf", TINY, tensors, shards=2)
    main(["convert", "--from", str(source), "--to", str(tmp_path / "ours"), "--json"])
    return {"hf": source, "ours": tmp_path / "ours", "expected": expected_arrays(tensors)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_kinds_of_folder_start_a_module_on_any_placement_bit_for_bit(make_config, folders, layout):
    trainer = llm_on(LAYOUTS[layout], make_config())
    for kind in ("hf", "ours"):
        state = load_into(trainer, folders[kind])
        weights = trainer.weights(state)
        assert weights["llm"].keys() == folders["expected"].keys()
        for path, array in folders["expected"].items():
            assert weights["llm"][path].tobytes() == array.tobytes(), path
        for stage in trainer.stages:
            for path, array in state.stages[stage.name].params.items():
                assert array.sharding == stage.params[path].sharding


def test_no_whole_stack_is_read_for_a_shard(make_config, folders, monkeypatch):
    trainer = llm_on(Layout(devices="0-3", data=2, tensor=2), make_config())
    source = open_weights(folders["hf"])
    read, sizes = type(source).read, []

    def counted(self, module, path, box):
        part = read(self, module, path, box)
        sizes.append((path, part.nbytes))
        return part

    monkeypatch.setattr(type(source), "read", counted)
    trainer.init(0, warm_start={"llm": source})
    expected = folders["expected"]
    split = [size for path, size in sizes if path == "layers/block/mlp/up/kernel"]
    # Both halves of tensor, and of each the half that the optimizer of a copy holds.
    assert split == [expected["layers/block/mlp/up/kernel"].nbytes // 4] * 4


def test_weights_are_cast_to_the_dtype_that_trains(make_config, folders):
    trainer = llm_on(Layout(devices="0-1", tensor=2), make_config(), param_dtype="bfloat16")
    state = load_into(trainer, folders["hf"])
    for stage in (stage for stage in trainer.stages if stage.module == "llm"):
        for path, array in state.stages[stage.name].params.items():
            wanted = folders["expected"][path].astype(ml_dtypes.bfloat16)
            np.testing.assert_array_equal(np.asarray(array), wanted)


def test_an_own_checkpoint_starts_modules_with_a_fresh_optimizer(make_trainer, tmp_path):
    before = make_trainer()
    state = before.init(3)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1, trainer=before)
    checkpoints.save(state, {})
    checkpoints.close()
    stages = ["--placement.llm.tensor", "1", "--placement.llm.stage", "2", "--placement.llm.layers", "[1,2]"]
    after = make_trainer(*stages, "--optimizer.frozen", "[vision]")
    source = open_weights(tmp_path / "run")
    assert source.modules == ("vision", "llm")
    found = after.init(0, warm_start={"llm": source})
    assert found.step == 0
    expected, fresh, weights = before.weights(state), after.weights(after.init(0)), after.weights(found)
    for path, array in weights["llm"].items():
        assert array.tobytes() == expected["llm"][path].tobytes()
    for path, array in weights["vision"].items():
        assert array.tobytes() == fresh["vision"][path].tobytes()
    assert (weights["vision"]["patch/kernel"] != expected["vision"]["patch/kernel"]).any()
    moments = [leaf for stage in found.stages.values() for leaf in jax.tree.leaves(stage.opt_state)]
    assert moments and not any(np.asarray(leaf).any() for leaf in moments)


def test_a_converted_checkpoint_is_restored_by_the_trainer_itself(folders, tmp_path, make_config):
    """`Checkpoints` takes it for what it is: one of step 0 without optimizer state."""
    for layout in LAYOUTS.values():
        trainer = llm_on(layout, make_config())
        checkpoints = Checkpoints(folders["ours"], keep=1, trainer=trainer)
        state, extra = checkpoints.restore()
        assert (state.step, extra) == (0, {"family": "llama"})
        for path, array in trainer.weights(state)["llm"].items():
            assert array.tobytes() == folders["expected"][path].tobytes()


def test_what_does_not_fit_is_reported_with_module_path_and_shapes(make_trainer, folders, tmp_path):
    trainer = make_trainer("--model.llm.mlp_width", "52", "--model.llm.layers", "2")
    with pytest.raises(ConfigError) as raised:
        load_into(trainer, folders["ours"])
    assert f"module 'llm' does not fit {folders['ours']}/0: " in str(raised.value)
    assert "layers/block/mlp/down/kernel has shape (3, 48, 24) in the weights, (2, 52, 24) in the model" in str(
        raised.value
    )
    assert "and 1 more" in str(raised.value)
    modules = ("vision", "llm")
    for setting, message in {
        str(tmp_path): "holds no weights to start from",
        str(tmp_path / "nowhere"): "holds no weights to start from",
    }.items():
        with pytest.raises(ConfigError, match=message):
            open_warm_start(setting, modules)
    with pytest.raises(ConfigError, match="warm_start names module 'audio'; the model consists of vision, llm"):
        open_warm_start({"audio": str(folders["hf"])}, modules)
    with pytest.raises(ConfigError, match="holds modules llm, and the model consists of vision"):
        open_warm_start(str(folders["hf"]), ("vision",))
    with pytest.raises(ConfigError, match="holds no module 'vision', only llm"):
        make_trainer().init(0, warm_start=open_warm_start({"vision": str(folders["hf"])}, modules))


def test_three_modules_start_on_three_meshes_from_one_omni_folder(tmp_path):
    """Weights, and buffers that a checkpoint knows; counts of a step start as they are built."""
    tensors = tensors_of(OMNI, np.float32)
    for name in tensors:
        if name.endswith("num_batches_tracked"):
            tensors[name] = np.asarray(7, np.int64)
    source = write_folder(tmp_path / "hf", OMNI, tensors)
    family = FAMILIES["nemotron_h_omni"]
    configs = family.read_config(OMNI)
    build = lambda module: lambda rngs: family.build[module](configs[module], rngs)  # noqa: E731
    edges = [hetjax.Edge("vision.tokens", "llm.image_tokens"), hetjax.Edge("audio.tokens", "llm.audio_tokens")]
    graph = hetjax.ModuleGraph({module: build(module) for module in configs}, edges)
    layouts = {
        "vision": Layout(devices="0-1", fsdp=2),
        "audio": Layout(devices="2-3", data=2),
        "llm": Layout(devices="4-7", expert=2, tensor=2),
    }
    trainer = hetjax.Trainer(graph, Placement(layouts), optimizer=optax.adamw(1e-3))
    state = load_into(trainer, source)
    for module, entries in family.entries(configs).items():
        shapes = arrays_by_path(family.module(module, configs))
        expected = read_arrays(entries, tensors, shapes)
        (stage,) = (stage for stage in trainer.stages if stage.module == module)
        held = {**state.stages[stage.name].params, **state.stages[stage.name].buffers}
        for path, array in expected.items():
            np.testing.assert_array_equal(np.asarray(held[path]), array, err_msg=path)
        fresh = sorted(held.keys() - expected.keys())
        assert all(path.endswith("counts") for path in fresh), fresh
        assert not any(np.asarray(held[path]).any() for path in fresh)


def test_settings_that_the_weights_were_not_made_for_are_reported(folders, make_config):
    config = make_config("--model.llm.rope_theta", "500000").model.llm
    for kind in ("hf", "ours"):
        source = open_weights(folders[kind])
        assert differences(source, "llm", config) == ["rope_theta is 500000.0 in the model, 10000.0 in the weights"]
        assert differences(source, "llm", make_config().model.llm) == []
        assert differences(source, "vision", config) == []


@pytest.mark.slow
@pytest.mark.quick
def test_a_run_starts_where_its_settings_say(run, tmp_path):
    digits = {
        **LLAMA,
        "vocab_size": 288,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "head_dim": 16,
    }
    source = write_folder(tmp_path / "hf", digits, tensors_of(digits, np.float32))
    code, printed = run("--warm_start", str(source))
    assert code is None, printed
    # One more step of the same run goes on from its own checkpoint, not from these weights.
    source.rename(tmp_path / "moved")
    code, printed = run("--warm_start", str(source), "--steps", "3")
    assert code is None, printed
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    # Another run starts from that run's vision encoder.
    code, printed = run("--warm_start.vision", str(tmp_path / "run"), "--run_dir", str(tmp_path / "next"))
    assert code is None, printed
    config, _ = load_config(["--config", str(tmp_path / "next" / "config.yaml")])
    assert config.warm_start == {"vision": str(tmp_path / "run")}


def test_a_run_refuses_weights_of_another_size(run, tmp_path):
    source = write_folder(tmp_path / "hf", LLAMA, tensors_of(LLAMA))
    code, printed = run("--warm_start.llm", str(source))
    assert code == 2
    assert "module 'llm' does not fit" in printed and "(264, 32) in the weights, (288, 64) in the model" in printed
    code, printed = run("--warm_start.lml", str(source))
    assert code == 2
    assert "warm_start names module 'lml'" in printed
