"""Checkpoints that do not fit, are damaged, or cannot be written."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from hetjax.checkpoint import Checkpoints
from hetjax.errors import CheckpointError, ConfigError
from hetjax.meshes import Layout
from tests.harness.known_states import (
    DECODER,
    ONE_DEVICE,
    Noisy,
    assert_known,
    known_state,
    llm_on,
    noisy_on,
    restore,
    save,
    trainer_on,
)
from tests.harness.paths import ROOT

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


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hetjax.checkpoint.description.FORMAT", 2)
    save(tmp_path, noisy_on("0"))
    monkeypatch.setattr("hetjax.checkpoint.description.FORMAT", 1)
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
from tests.checkpoint.test_checkpoint_errors import Big, Checkpoints, CheckpointError, known_state, noisy_on

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
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(tmp_path), str(root)],
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
