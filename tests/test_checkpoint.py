import dataclasses
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import hetjax
from hetjax.checkpoint import Checkpoints
from hetjax.errors import CheckpointError, ConfigError, GraphError
from hetjax.state import StageState
from hetjax.whole import by_path
from meshes import Layout, Placement
from models import DecoderConfig, LanguageModel, VisionConfig, VisionEncoder

VISION = VisionConfig(
    image_size=8, patch_size=4, width=16, layers=2, heads=2, mlp_width=32, projector_width=32, output_width=24
)
DECODER = DecoderConfig(vocab_size=40, width=24, layers=2, heads=4, kv_heads=2, head_dim=6, mlp_width=48)

DISJOINT = {"vision": Layout(devices="0-3", data=4), "llm": Layout(devices="4-7", fsdp=2, tensor=2)}
COLOCATED_STAGES = {"vision": Layout(fsdp=4, stage=2), "llm": Layout(data=2, tensor=2, stage=2)}
ONE_DEVICE = {"vision": Layout(devices="0"), "llm": Layout(devices="0")}
REVERSED = {"vision": Layout(devices="7,3", stage=2), "llm": Layout(devices="6,5,1,0", stage=2, fsdp=2)}


def trainer_on(placement, *, decoder=DECODER, optimizer=None, **settings) -> hetjax.Trainer:
    graph = hetjax.ModuleGraph(
        {
            "vision": lambda rngs: VisionEncoder(VISION, rngs=rngs),
            "llm": lambda rngs: LanguageModel(decoder, rngs=rngs),
        },
        [hetjax.Edge("vision.tokens", "llm.image_tokens")],
    )
    return hetjax.Trainer(graph, Placement(placement), optimizer=optimizer or optax.adamw(1e-2), **settings)


def llm_on(layout: Layout, decoder=DECODER, **settings) -> hetjax.Trainer:
    graph = hetjax.ModuleGraph({"llm": lambda rngs: LanguageModel(decoder, rngs=rngs)})
    return hetjax.Trainer(graph, Placement({"llm": layout}), optimizer=optax.adamw(1e-2), **settings)


# ── states whose every value is known without the code under test ────────────────────────────────


def known_part(stage, kind: str, path: str, aval) -> np.ndarray:
    """What a stage holds of an array that is drawn for the whole module; the path alone says what is stacked."""
    stacked = stage.count > 1 and "layers/" in path
    shape = (aval.shape[0] * stage.count, *aval.shape[1:]) if stacked else aval.shape
    rng = np.random.default_rng(zlib.crc32(f"{stage.module} {kind} {path}".encode()))
    whole = (100 * rng.normal(size=shape)).astype(aval.dtype)
    return whole[stage.index * aval.shape[0] : (stage.index + 1) * aval.shape[0]] if stacked else whole


def known_state(trainer: hetjax.Trainer, step: int) -> hetjax.TrainState:
    def drawn(stage, kind, avals):
        return {
            path: jax.device_put(known_part(stage, kind, path, aval), aval.sharding) for path, aval in avals.items()
        }

    stages = {}
    for stage in trainer.stages:
        opt_state = None
        if stage.trains:
            tree = trainer.updates[stage.name].opt_state
            opt_state = jax.tree.unflatten(jax.tree.structure(tree), drawn(stage, "opt_state", by_path(tree)).values())
        stages[stage.name] = StageState(
            params=drawn(stage, "params", stage.params),
            buffers=drawn(stage, "buffers", stage.buffers),
            opt_state=opt_state,
        )
    return hetjax.TrainState(step=step, stages=stages)


def assert_known(trainer: hetjax.Trainer, state: hetjax.TrainState) -> None:
    """Every array has the bits, the dtype and the sharding that `known_state` gives it on this trainer."""
    expected = known_state(trainer, state.step)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for name, stage in expected.stages.items():
        found = by_path(dataclasses.asdict(state.stages[name]))
        for path, array in by_path(dataclasses.asdict(stage)).items():
            assert found[path].dtype == array.dtype, (name, path)
            assert found[path].sharding == array.sharding, (name, path)
            assert np.asarray(found[path]).tobytes() == np.asarray(array).tobytes(), (name, path)


def save(directory, trainer, *, step=1, extra=None) -> None:
    checkpoints = Checkpoints(directory, keep=2, trainer=trainer)
    checkpoints.save(known_state(trainer, step), extra or {})
    checkpoints.close()


def restore(directory, trainer):
    return Checkpoints(directory, keep=2, trainer=trainer).restore()


# ── any placement to any other ───────────────────────────────────────────────────────────────────


def test_a_checkpoint_restores_on_every_other_placement_bit_for_bit(tmp_path):
    before = trainer_on(DISJOINT)
    save(tmp_path / "0", before, step=7)
    for i, placement in enumerate((COLOCATED_STAGES, ONE_DEVICE, REVERSED)):
        trainer = trainer_on(placement)
        state, _ = restore(tmp_path / str(i), trainer)
        assert state.step == 7
        assert_known(trainer, state)
        checkpoints = Checkpoints(tmp_path / str(i + 1), keep=1, trainer=trainer)
        checkpoints.save(state, {})
        checkpoints.close()


def test_bfloat16_arrays_keep_their_bits(tmp_path):
    save(tmp_path, llm_on(Layout(fsdp=4, stage=2), param_dtype=jnp.bfloat16))
    trainer = llm_on(Layout(data=4, tensor=2), param_dtype=jnp.bfloat16)
    state, _ = restore(tmp_path, trainer)
    assert state.stages["llm"].params["embedding"].dtype == jnp.bfloat16
    assert_known(trainer, state)


def test_float64_arrays_keep_their_bits(tmp_path, float64):
    save(tmp_path, llm_on(Layout(fsdp=4, stage=2), param_dtype=jnp.float64))
    trainer = llm_on(Layout(data=4, tensor=2), param_dtype=jnp.float64)
    state, _ = restore(tmp_path, trainer)
    assert state.stages["llm"].params["embedding"].dtype == jnp.float64
    assert_known(trainer, state)


def test_an_optimizer_without_state_restores(tmp_path):
    placement = {"vision": Layout(devices="0"), "llm": Layout(devices="1-2", stage=2)}
    trainer = trainer_on(placement, optimizer={"vision": optax.sgd(0.1), "llm": optax.sgd(0.1, momentum=0.9)})
    save(tmp_path, trainer)
    assert_known(trainer, restore(tmp_path, trainer)[0])


class Noisy(nnx.Module):
    """Holds a random key, a running mean and a count beside its weight."""

    def __init__(self, rngs: nnx.Rngs, size: int = 4):
        self.weight = nnx.Param(rngs.params.normal((size, size)))
        self.mean = nnx.BatchStat(jnp.asarray(0.25))
        self.dropout = nnx.Dropout(0.5, rngs=rngs.fork())

    def __call__(self, x):
        return {"loss": jnp.sum(self.dropout(x @ self.weight[...])) + self.mean[...]}


def noisy_on(devices: str, module=Noisy) -> hetjax.Trainer:
    layout = Layout(devices=devices, data=len(devices.split(",")))
    return hetjax.Trainer(
        hetjax.ModuleGraph({"noisy": module}), Placement({"noisy": layout}), optimizer=optax.adam(0.1)
    )


def test_buffers_and_random_keys_restore(tmp_path):
    saved = noisy_on("0")
    state = saved.init(5)
    buffers = jax.device_get(state.stages["noisy"].buffers)
    assert any(array.dtype == np.uint32 and array.shape == (2,) for array in buffers.values())
    assert any(array.dtype == np.float32 for array in buffers.values())
    checkpoints = Checkpoints(tmp_path, keep=1, trainer=saved)
    checkpoints.save(state, {})
    checkpoints.close()
    restored, _ = restore(tmp_path, noisy_on("4,6"))
    assert restored.stages["noisy"].buffers.keys() == buffers.keys()
    for path, array in restored.stages["noisy"].buffers.items():
        np.testing.assert_array_equal(array, buffers[path])
        assert array.dtype == buffers[path].dtype
        assert array.sharding.device_set == {jax.devices()[4], jax.devices()[6]}


# ── training goes on ─────────────────────────────────────────────────────────────────────────────


class Ladder(nnx.Module):
    """Two linear layers with dropout, one a stage; the last returns the loss."""

    def __init__(self, rngs: nnx.Rngs):
        self.weight = nnx.Param(rngs.params.normal((2, 8, 8)), out_sharding=("layers", "embed", "mlp"))
        self.dropout = nnx.Dropout(0.5, rngs=rngs.fork())
        self.input_ports = ("x",)
        self.ends = True

    def stage(self, index, count):
        part = nnx.merge(*nnx.split(self))
        part.weight = nnx.Param(self.weight[...][index : index + 1], out_sharding=("layers", "embed", "mlp"))
        part.input_ports = ("x",) if index == 0 else ("hidden",)
        part.ends = index == count - 1
        return part

    def __call__(self, x=None, hidden=None):
        hidden = x if hidden is None else hidden
        for weight in self.weight[...]:
            hidden = self.dropout(jnp.tanh(hidden @ weight))
        return {"loss": jnp.sum(hidden)} if self.ends else {"hidden": hidden}


class Held:
    """A function of the file system that waits, in the background, until `go` is set."""

    def __init__(self, function, part: str):
        self.function, self.part = function, part
        self.go, self.waited = threading.Event(), []

    def __call__(self, path, *args, **kwargs):
        if self.part in str(path):
            self.waited.append(self.go.wait(timeout=30))
        return self.function(path, *args, **kwargs)


def test_steps_after_a_save_do_not_touch_it_and_a_resumed_run_repeats_them(tmp_path, monkeypatch):
    layout = Layout(devices="0-3", fsdp=2, stage=2)
    trainer = hetjax.Trainer(hetjax.ModuleGraph({"m": Ladder}), Placement({"m": layout}), optimizer=optax.adam(0.1))
    rng = np.random.default_rng(0)
    batches = [{"m": {"x": rng.normal(size=(4, 8)).astype(np.float32)}, "loss_tokens": 4} for _ in range(3)]

    def host(state):
        # A copy, since on CPU a host array may be a view of the device's memory.
        return jax.tree.map(lambda array: np.array(array, copy=True), state)

    state, _ = trainer.step(trainer.init(0), batches[0])
    recorded = host(state)
    checkpoints = Checkpoints(tmp_path, keep=1, trainer=trainer)
    # No folder to write the arrays to before the steps after the save are done.
    mkdir = Held(os.mkdir, "m.weights.")
    monkeypatch.setattr(os, "mkdir", mkdir)
    checkpoints.save(state, {})
    for batch in batches[1:]:
        state, metrics = trainer.step(state, batch)
    after, loss = host(state), float(metrics["loss"])
    mkdir.go.set()
    checkpoints.close()
    assert mkdir.waited and all(mkdir.waited)
    for before, later in ((recorded, after), (recorded.stages["m.1"].buffers, after.stages["m.1"].buffers)):
        assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(later), strict=True))

    resumed, _ = restore(tmp_path, trainer)
    jax.tree.map(np.testing.assert_array_equal, host(resumed), recorded)
    for batch in batches[1:]:
        resumed, metrics = trainer.step(resumed, batch)
    jax.tree.map(np.testing.assert_array_equal, host(resumed), after)
    assert resumed.step == 3
    assert float(metrics["loss"]) == loss


def test_save_returns_before_the_disk_is_written(tmp_path, monkeypatch):
    trainer, rename = noisy_on("0"), Held(os.rename, "")
    monkeypatch.setattr(os, "rename", rename)
    checkpoints = Checkpoints(tmp_path, keep=1, trainer=trainer)
    checkpoints.save(known_state(trainer, 1), {})
    assert checkpoints.latest_step() is None
    rename.go.set()
    checkpoints.wait()
    assert rename.waited and all(rename.waited)
    assert checkpoints.latest_step() == 1
    checkpoints.close()


def test_the_newest_checkpoints_are_kept_and_the_latest_is_restored(tmp_path):
    trainer = noisy_on("0")
    checkpoints = Checkpoints(tmp_path / "deep" / "run", keep=2, trainer=trainer)
    assert checkpoints.latest_step() is None
    for step in (3, 5, 12):
        checkpoints.save(known_state(trainer, step), {"step": step})
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "deep" / "run").iterdir() if path.name.isdigit()) == ["12", "5"]
    assert checkpoints.latest_step() == 12
    state, extra = checkpoints.restore()
    assert (state.step, extra) == (12, {"step": 12})


def test_extra_comes_back_as_json_gives_it(tmp_path):
    extra = {"data": {"position": 3, "epoch": [1, 2.5, None, True]}, "text": "naïve"}
    save(tmp_path, noisy_on("0"), extra=extra)
    assert restore(tmp_path, noisy_on("1"))[1] == extra


def test_saving_what_was_just_restored_does_nothing(tmp_path):
    trainer = noisy_on("0")
    save(tmp_path, trainer, step=4, extra={"mark": 1})
    checkpoints = Checkpoints(tmp_path, keep=2, trainer=trainer)
    state, _ = checkpoints.restore()
    checkpoints.save(state, {"mark": 2})
    checkpoints.close()
    assert checkpoints.restore()[1] == {"mark": 1}


# ── frozen then, trained now ─────────────────────────────────────────────────────────────────────


def test_a_module_frozen_then_and_trained_now_keeps_its_weights_and_starts_its_optimizer(tmp_path, caplog):
    save(tmp_path, trainer_on(ONE_DEVICE, frozen=["vision"], compute_dtype=jnp.bfloat16))
    trainer = trainer_on(ONE_DEVICE, compute_dtype=jnp.bfloat16)
    state, _ = restore(tmp_path, trainer)
    vision = trainer.stages[0]
    for path, array in state.stages["vision"].params.items():
        frozen = jax.ShapeDtypeStruct(array.shape, jnp.bfloat16)
        np.testing.assert_array_equal(array, known_part(vision, "params", path, frozen).astype(np.float32))
        assert array.dtype == jnp.float32
    assert all(not np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(state.stages["vision"].opt_state))
    assert np.any(np.asarray(by_path(state.stages["llm"].opt_state)["0/mu/embedding"]))
    assert "module 'vision' frozen then and trains now; its optimizer state starts fresh" in caplog.text


def test_a_module_trained_then_and_frozen_now_keeps_its_weights(tmp_path, caplog):
    save(tmp_path, trainer_on(ONE_DEVICE))
    trainer = trainer_on(COLOCATED_STAGES, frozen=["vision"])
    state, _ = restore(tmp_path, trainer)
    assert_known(trainer, state)
    assert state.stages["vision.1"].opt_state is None
    assert "module 'vision' trained then and is frozen now; its optimizer state is dropped" in caplog.text


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=rf"no checkpoint in {tmp_path}; train first, or give another run_dir"):
        restore(tmp_path, noisy_on("0"))
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file"):
        save(tmp_path / "file", noisy_on("0"))


def test_another_model_is_refused_by_its_first_different_shape(tmp_path):
    save(tmp_path, llm_on(Layout(devices="0")), step=7)
    wider = dataclasses.replace(DECODER, vocab_size=48)
    message = (
        rf"checkpoint of step 7 in {tmp_path} is of another model: module 'llm': params embedding has shape "
        r"\[40, 24\] in the checkpoint, but \[48, 24\] in the model; use the config .* or another run_dir"
    )
    with pytest.raises(CheckpointError, match=message):
        restore(tmp_path, llm_on(Layout(devices="0"), wider))


def test_another_dtype_is_refused(tmp_path):
    save(tmp_path, llm_on(Layout(devices="0")))
    with pytest.raises(CheckpointError, match=r"embedding has dtype float32 in the checkpoint, but bfloat16 in the m"):
        restore(tmp_path, llm_on(Layout(devices="0"), param_dtype=jnp.bfloat16))


def test_other_modules_are_refused_both_ways(tmp_path):
    save(tmp_path / "one", llm_on(Layout(devices="0")))
    save(tmp_path / "two", trainer_on(ONE_DEVICE))
    with pytest.raises(CheckpointError, match=r"the model has module 'vision', which the checkpoint lacks"):
        restore(tmp_path / "one", trainer_on(ONE_DEVICE))
    with pytest.raises(CheckpointError, match=r"the checkpoint has module 'vision', which the model lacks"):
        restore(tmp_path / "two", llm_on(Layout(devices="0")))


def test_another_optimizer_is_refused(tmp_path):
    save(tmp_path, trainer_on(ONE_DEVICE))
    message = r"is of another optimizer: module 'vision': opt_state 0/trace/\S+ of shape .* is only in the model"
    with pytest.raises(CheckpointError, match=message):
        restore(tmp_path, trainer_on(ONE_DEVICE, optimizer=optax.sgd(0.1, momentum=0.9)))


def test_a_later_checkpoint_of_another_run_is_not_overtaken(tmp_path):
    trainer = noisy_on("0")
    save(tmp_path, trainer, step=9)
    checkpoints = Checkpoints(tmp_path, keep=2, trainer=trainer)
    for step in (4, 9):
        with pytest.raises(CheckpointError, match=rf"cannot save step {step}: .* step 9 from another run; resume"):
            checkpoints.save(known_state(trainer, step), {})


def test_extra_that_is_not_json_is_a_type_error_before_anything_is_written(tmp_path):
    trainer = noisy_on("0")
    with pytest.raises(TypeError, match="JSON"):
        Checkpoints(tmp_path / "run", keep=1, trainer=trainer).save(known_state(trainer, 1), {"array": b"bytes"})
    assert not (tmp_path / "run").exists()


def test_keeping_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="keep is 0"):
        Checkpoints(tmp_path, keep=0, trainer=noisy_on("0"))


class Uneven(nnx.Module):
    """Cut by its author into stages of two rows and one."""

    def __init__(self, rngs: nnx.Rngs):
        self.weight = nnx.Param(rngs.params.normal((3, 4)))
        self.input_ports = ("x",)

    def stage(self, index, count):
        part = nnx.merge(*nnx.split(self))
        part.weight = nnx.Param(self.weight[...][:2] if index == 0 else self.weight[...][2:])
        part.input_ports = ("x",) if index == 0 else ("hidden",)
        return part

    def __call__(self, x=None, hidden=None):
        return {"loss": jnp.sum(self.weight[...])}


def test_an_uneven_cut_is_refused_before_training(tmp_path):
    graph = hetjax.ModuleGraph({"m": Uneven})
    trainer = hetjax.Trainer(graph, Placement({"m": Layout(devices="0-1", stage=2)}), optimizer=optax.sgd(0.1))
    with pytest.raises(GraphError, match=r"module 'm': weight: its stages hold 2, 1 rows"):
        Checkpoints(tmp_path, keep=1, trainer=trainer)


@pytest.mark.parametrize("item", ["llm.weights", "llm.opt_state", "description"])
def test_a_damaged_checkpoint_is_refused(tmp_path, item):
    trainer = llm_on(Layout(devices="0"))
    save(tmp_path, trainer, step=3)
    for path in (tmp_path / "3" / item).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = rf"cannot read the checkpoint of step 3 in {tmp_path}: .*; delete {tmp_path}/3 to go back"
    with pytest.raises(CheckpointError, match=message):
        restore(tmp_path, trainer)


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hetjax.checkpoint.FORMAT", 2)
    save(tmp_path, noisy_on("0"))
    monkeypatch.setattr("hetjax.checkpoint.FORMAT", 1)
    with pytest.raises(CheckpointError, match=r"has format 2, but this version reads format 1"):
        restore(tmp_path, noisy_on("0"))


# ── writes that fail ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("notice", ["wait", "save", "close"])
def test_a_full_disk_in_the_background_is_raised_once_by_what_comes_next(tmp_path, monkeypatch, notice):
    trainer = noisy_on("0")
    checkpoints = Checkpoints(tmp_path, keep=2, trainer=trainer)
    checkpoints.save(known_state(trainer, 1), {})
    checkpoints.wait()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        checkpoints.save(known_state(trainer, 2), {})
        call = {"wait": checkpoints.wait, "close": checkpoints.close}.get(
            notice, lambda: checkpoints.save(known_state(trainer, 3), {})
        )
        message = rf"cannot write the checkpoint of step 2 to {tmp_path}: OSError: .*No space left on device; make room"
        with pytest.raises(CheckpointError, match=message):
            call()
    checkpoints.close()
    assert checkpoints.latest_step() == 1
    checkpoints.save(known_state(trainer, 2), {})
    checkpoints.close()
    assert checkpoints.latest_step() == 2


PROCESS = """
import resource, signal, sys
import jax
jax.config.update("jax_platforms", "cpu")
sys.path[:0] = sys.argv[2:]
from test_checkpoint import Big, Checkpoints, CheckpointError, known_state, noisy_on

trainer = noisy_on("0", Big)
checkpoints = Checkpoints(sys.argv[1], keep=3, trainer=trainer)
checkpoints.save(known_state(trainer, 1), {})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    checkpoints.save(known_state(trainer, 2), {})
    checkpoints.wait()
except CheckpointError as error:
    print(error)
# From here the system kills this process in the middle of the write that is too large.
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
checkpoints.save(known_state(trainer, 3), {})
checkpoints.wait()
"""


class Big(Noisy):
    """A megabyte of weights."""

    def __init__(self, rngs: nnx.Rngs):
        super().__init__(rngs, size=512)


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_a_killed_process_leaves_the_checkpoint_before_and_its_leftovers_are_removed(tmp_path):
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(tmp_path), str(here), str(here.parent)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGXFSZ, done.stderr
    assert f"cannot write the checkpoint of step 2 to {tmp_path}" in done.stdout
    assert "File too large" in done.stdout

    trainer = noisy_on("0", Big)
    assert len(list(tmp_path.glob("[23].*"))) >= 1
    checkpoints = Checkpoints(tmp_path, keep=3, trainer=trainer)
    state, _ = checkpoints.restore()
    assert state.step == 1
    assert_known(trainer, state)
    checkpoints.save(known_state(trainer, 3), {})
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


def test_orbax_says_nothing(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("absl").setLevel(logging.DEBUG)
    trainer = noisy_on("0")
    save(tmp_path, trainer)
    restore(tmp_path, trainer)
    assert not [record for record in caplog.records if record.name == "absl"]
    assert capfd.readouterr() == ("", "")


def test_the_description_lists_every_array(tmp_path):
    save(tmp_path, llm_on(Layout(fsdp=2, devices="0-3", stage=2)), step=2)
    found = [path for path in (tmp_path / "2" / "description").rglob("*") if path.is_file()]
    description = json.loads(found[0].read_text())
    assert (description["format"], description["step"]) == (1, 2)
    kinds = description["modules"]["llm"]
    assert kinds["params"]["layers/block/mlp/down/kernel"] == {"shape": [2, 48, 24], "dtype": "float32"}
    assert kinds["opt_state"]["0/count"] == {"shape": [], "dtype": "int32"}
