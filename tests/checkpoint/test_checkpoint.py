"""What is saved comes back, on any placement, bit for bit."""

import json
import logging
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tensorstore
from flax import nnx

import hetjax
from hetjax.checkpoint import Checkpoints
from hetjax.meshes import Layout, Placement
from hetjax.stages.flat_state import by_path
from tests.harness.known_states import (
    COLOCATED_STAGES,
    DISJOINT,
    ONE_DEVICE,
    REVERSED,
    assert_known,
    known_part,
    known_state,
    llm_on,
    noisy_on,
    restore,
    save,
    trainer_on,
)

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


def test_uneven_stages_and_chunks_restore_on_every_other_cut_bit_for_bit(tmp_path):
    """Whole arrays on the disk, whatever cut wrote them: slices of 1 and 3 layers, or two slices a device."""
    layouts = [
        Layout(fsdp=4, tensor=2),
        Layout(stage=2, tensor=2, fsdp=2, layers=[1, 3]),
        Layout(stage=2, data=2, tensor=2, chunks=2),
        Layout(stage=2, fsdp=4, layers=[3, 1]),
        Layout(stage=4, fsdp=2),
        Layout(devices="0-2", stage=3, layers=[1, 2, 1]),
        Layout(devices="3"),
    ]
    save(tmp_path / "0", llm_on(layouts[0]), step=7)
    for i, layout in enumerate(layouts[1:]):
        trainer = llm_on(layout)
        state, _ = restore(tmp_path / str(i), trainer)
        assert_known(trainer, state)
        checkpoints = Checkpoints(tmp_path / str(i + 1), keep=1, trainer=trainer)
        checkpoints.save(state, {})
        jax.tree.map(lambda array: array.delete(), state.stages)
        checkpoints.close()
    expected = by_path(known_state(llm_on(layouts[0]), 7).stages["llm"].params)
    for name in ("1", "2"):
        found = ocp.PyTreeCheckpointHandler().restore(tmp_path / name / "7" / "llm.weights")["params"]
        for path, array in by_path(found).items():
            assert np.array_equal(array, expected[path]), path


def test_stages_on_one_mesh_go_on_from_a_checkpoint(tmp_path):
    """What all of them hold, such as the optimizer's count, is nothing that one could consume for another."""
    trainer = llm_on(Layout(devices="0-1", stage=2, chunks=2))
    save(tmp_path, trainer)
    state, _ = restore(tmp_path, trainer)
    tokens = np.zeros((4, 8), np.int32)
    batch = {"llm": {"tokens": tokens, "labels": tokens, "loss_weights": np.ones(tokens.shape, np.float32)}}
    for _ in range(2):
        state, _ = trainer.step(state, batch)
    counts = [by_path(stage.opt_state)["0/count"] for stage in state.stages.values()]
    assert len(set(map(int, counts))) == 1
    assert state.step == 3


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
    """A function that reaches the disk and waits, in the background, until `go` is set."""

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
    # No array is written before the steps after the save are done.
    opened = Held(tensorstore.open, "m.weights")
    monkeypatch.setattr(tensorstore, "open", opened)
    checkpoints.save(state, {})
    for batch in batches[1:]:
        state, metrics = trainer.step(state, batch)
    after, loss = host(state), float(metrics["loss"])
    opened.go.set()
    checkpoints.close()
    assert opened.waited and all(opened.waited)
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


def test_orbax_alone_reads_a_checkpoint(tmp_path):
    trainer = llm_on(Layout(devices="0-3", fsdp=2, stage=2))
    save(tmp_path, trainer, step=3, extra={"mark": 1})
    weights = ocp.StandardCheckpointer().restore(tmp_path / "3" / "llm.weights")["params"]
    state = known_state(trainer, 3)
    rows = [state.stages[name].params["layers/block/mlp/down/kernel"] for name in ("llm.0", "llm.1")]
    found = weights["layers"]["block"]["mlp"]["down"]["kernel"]
    np.testing.assert_array_equal(found, np.concatenate([np.asarray(part) for part in rows]))
    with ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        arguments = {"description": ocp.args.JsonRestore(), "llm.opt_state": ocp.args.StandardRestore()}
        read = manager.restore(manager.latest_step(), args=ocp.args.Composite(**arguments))
    assert read.description["extra"] == {"mark": 1}
    np.testing.assert_array_equal(
        read["llm.opt_state"]["0"]["count"], by_path(state.stages["llm.0"].opt_state)["0/count"]
    )


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
    assert kinds["params"]["layers/block/mlp/down/kernel"] == {"shape": [4, 48, 24], "dtype": "float32"}
    assert kinds["opt_state"]["0/count"] == {"shape": [], "dtype": "int32"}
