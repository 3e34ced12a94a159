"""Checkpoints of several processes: what any number of them wrote, any other number restores."""

from __future__ import annotations

import errno
import os
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from flax.traverse_util import unflatten_dict

from hetjax.checkpoint import Checkpoints
from hetjax.checkpoint import writer as write
from hetjax.errors import CheckpointError
from hetjax.meshes import Layout
from tests.harness.known_states import (
    COLOCATED_STAGES,
    DISJOINT,
    REVERSED,
    assert_known,
    known_state,
    restore,
    save,
    trainer_on,
)
from tests.harness.processes import ProcessFailed, run_processes

# Over four processes of two devices. Vision lies over processes 0 and 1, a stage of llm on 2 and one on 3.
BORDERS = {"vision": Layout(devices="1-2", data=2), "llm": Layout(devices="4-7", tensor=2, stage=2)}
# Stages of unlike length over the border of processes, so that files of both have rows of one array.
UNEVEN = {"vision": Layout(devices="0-1", data=2), "llm": Layout(devices="2-7", tensor=2, stage=3, layers=[1, 2, 1])}
# Two slices of layers on each mesh, and each mesh over two processes.
CHUNKS = {"vision": Layout(devices="0-7", data=8), "llm": Layout(tensor=2, fsdp=2, stage=2, chunks=2)}
# Vision is on process 1 alone, llm over 2 and 3, and process 0, which puts the items together, holds nothing.
IDLE_FIRST = {"vision": Layout(devices="3"), "llm": Layout(devices="4-7", fsdp=2, tensor=2)}
# Over two processes of one device.
TWO = {"vision": Layout(devices="1"), "llm": Layout(devices="0-1", stage=2)}


def pass_on(folder: str, from_one: str) -> dict[str, list[int]]:
    """Restore what one process wrote, then what this group wrote on each placement, on the next one."""
    local = {}
    before = from_one
    for name, placement in {
        "borders": BORDERS, "colocated": COLOCATED_STAGES, "uneven": UNEVEN, "chunks": CHUNKS, "reversed": REVERSED,
        "idle": IDLE_FIRST,
    }.items():  # fmt: skip
        trainer = trainer_on(placement)
        state, extra = restore(before, trainer)
        assert (state.step, extra) == (7, {"from": "one"})
        assert_known(trainer, state)
        local[name] = sorted(state.stages)
        before = f"{folder}/{name}"
        checkpoints = Checkpoints(before, keep=1, trainer=trainer)
        checkpoints.save(state, extra)
        # A step consumes the state: nothing of it may be needed any more.
        jax.tree.map(lambda array: array.delete(), state.stages)
        checkpoints.close()
        assert checkpoints.latest_step() == 7
    return local


@pytest.mark.timeout(300)
def test_what_one_process_wrote_goes_through_four_on_every_placement_and_back(tmp_path):
    save(tmp_path / "one", trainer_on(DISJOINT), step=7, extra={"from": "one"})
    local = run_processes(4, pass_on, devices=2, folder=str(tmp_path), from_one=str(tmp_path / "one"))
    assert [process["borders"] for process in local] == [["vision"], ["vision"], ["llm.0"], ["llm.1"]]
    assert [process["reversed"] for process in local] == [["llm.1"], ["vision.1"], ["llm.0"], ["llm.0", "vision.0"]]
    assert [process["idle"] for process in local] == [[], ["vision"], ["llm"], ["llm"]]
    trainer = trainer_on(DISJOINT)
    for name in ("borders", "idle"):
        state, extra = restore(tmp_path / name, trainer)
        assert extra == {"from": "one"}
        assert_known(trainer, state)
    assert all(os.listdir(tmp_path / name) == ["7"] for name in local[0])
    assert_orbax_alone_reads(tmp_path / "borders" / "7" / "llm.weights")


def assert_orbax_alone_reads(item) -> None:
    """An item whose embedding only process 2 had, and whose last norm only process 3."""
    expected = known_state(trainer_on({"vision": Layout(devices="0"), "llm": Layout(devices="0")}), 7).stages["llm"]
    target = {"params": unflatten_dict(expected.params, sep="/")}
    found = ocp.StandardCheckpointer().restore(item, jax.tree.map(ocp.utils.to_shape_dtype_struct, target))
    assert len(expected.params) > 5
    jax.tree.map(np.testing.assert_array_equal, found, target)


# ── writes that fail ─────────────────────────────────────────────────────────────────────────────


def fail_and_recover(folder: str) -> list[str]:
    """The messages of a write that fails in process 1, and of one that takes too long there."""
    trainer = trainer_on(TWO)
    checkpoints = Checkpoints(folder, keep=2, trainer=trainer)
    opened, messages = tensorstore.open, []

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def late(*args, **kwargs):
        tensorstore.open = opened
        time.sleep(2)
        return opened(*args, **kwargs)

    for broken, limit in ((full, 60), (late, 1)):
        write.TIME_LIMIT_S = limit
        if jax.process_index() == 1:
            tensorstore.open = broken
        checkpoints.save(known_state(trainer, 1), {})
        with pytest.raises(CheckpointError) as raised:
            checkpoints.wait()
        messages.append(str(raised.value))
        assert checkpoints.latest_step() is None
        tensorstore.open, write.TIME_LIMIT_S = opened, 60
    messages.append(save_to_a_folder_that_is_not_shared(folder, trainer))
    for step in (1, 2, 3):
        checkpoints.save(known_state(trainer, step), {})
    checkpoints.close()
    state, _ = checkpoints.restore()
    assert state.step == 3
    assert_known(trainer, state)
    return messages


def save_to_a_folder_that_is_not_shared(folder: str, trainer) -> str:
    write.TIME_LIMIT_S, visible, write.VISIBLE_S = 1, write.VISIBLE_S, 0.5
    checkpoints = Checkpoints(f"{folder}/of-{jax.process_index()}", keep=2, trainer=trainer)
    with pytest.raises(CheckpointError) as raised:
        checkpoints.save(known_state(trainer, 1), {})
        checkpoints.wait()
    write.TIME_LIMIT_S, write.VISIBLE_S = 60, visible
    return str(raised.value)


def test_a_write_that_fails_in_one_process_raises_in_all_and_the_next_works(tmp_path):
    first, second = run_processes(2, fail_and_recover, devices=1, folder=str(tmp_path))
    for message in (first[0], second[0]):
        assert message.startswith(f"cannot write the checkpoint of step 1 to {tmp_path}: ")
        assert "No space left on device; make room" in message
    assert "process 1 failed: " in first[0]
    assert "waited 1 s for all processes to write; processes that have not written: 1" in first[1]
    assert "process 0 failed: waited 1 s" in second[1]
    assert "process 1 does not see what process 0 made" in second[2]
    assert "a file system that all processes share" in second[2]
    assert "processes that have not written: 1" in first[2]
    assert sorted(os.listdir(tmp_path)) == ["2", "3", "of-0"]


def die_between_items(folder: str) -> None:
    trainer = trainer_on(TWO)
    checkpoints = Checkpoints(folder, keep=2, trainer=trainer)
    checkpoints.save(known_state(trainer, 1), {})
    checkpoints.wait()
    begin, begun = ocp.PyTreeCheckpointHandler.async_save, []

    async def die(self, directory, *args, **kwargs):
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        begun.append(await begin(self, directory, *args, **kwargs))
        for future in begun[-1]:
            future.result()
        return begun[-1]

    if jax.process_index() == 1:
        ocp.PyTreeCheckpointHandler.async_save = die
    checkpoints.save(known_state(trainer, 2), {})
    checkpoints.wait()


def test_a_process_killed_between_items_leaves_the_checkpoint_before(tmp_path):
    with pytest.raises(ProcessFailed, match="process 1, exit code -9"):
        run_processes(2, die_between_items, devices=1, folder=str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["1", "2.partial"]
    assert os.listdir(tmp_path / "2.partial" / "checkpoint")
    trainer = trainer_on(DISJOINT)
    checkpoints = Checkpoints(tmp_path, keep=2, trainer=trainer)
    state, _ = checkpoints.restore()
    assert state.step == 1
    assert_known(trainer, state)
    checkpoints.save(known_state(trainer, 2), {})
    checkpoints.close()
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def freeze_and_thaw(folder: str) -> None:
    everywhere = {"vision": Layout(fsdp=4), "llm": Layout(data=2, stage=2)}
    save(f"{folder}/frozen", trainer_on(everywhere, frozen=["vision"]))
    trainer = trainer_on(everywhere)
    state, _ = restore(f"{folder}/frozen", trainer)
    expected = known_state(trainer, 1)
    for path, array in expected.stages["vision"].params.items():
        for shard, other in zip(
            array.addressable_shards, state.stages["vision"].params[path].addressable_shards, strict=True
        ):
            np.testing.assert_array_equal(shard.data, other.data)
    moments = jax.tree.leaves(state.stages["vision"].opt_state)
    assert len(moments) > 10
    assert not any(np.any(np.asarray(shard.data)) for moment in moments for shard in moment.addressable_shards)
    save(f"{folder}/trained", trainer)
    frozen = trainer_on(everywhere, frozen=["vision"])
    assert_known(frozen, restore(f"{folder}/trained", frozen)[0])


@pytest.mark.slow
def test_a_module_is_frozen_and_thawed_over_processes(tmp_path):
    run_processes(2, freeze_and_thaw, devices=2, folder=str(tmp_path))
