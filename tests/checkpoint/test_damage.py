"""Damaged checkpoints: none loads, the one before does, and nothing of them is lost."""

from __future__ import annotations

import logging
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from hetjax.checkpoint import Checkpoints, checksums
from hetjax.checkpoint.checksums import CHECKSUMS_FILE, checksums_of, files_in, from_text, to_text
from hetjax.checkpoint.integrity import damage_of
from hetjax.checkpoint.saved_weights import SavedWeights
from hetjax.errors import CheckpointError
from hetjax.meshes import Layout
from tests.harness.known_states import assert_known, known_state, llm_on, noisy_on, restore, save

FLIPS = 250


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Checkpoints of steps 3 and 6, never written to."""
    folder, trainer = tmp_path_factory.mktemp("two_steps"), llm_on(Layout(devices="0-1", fsdp=2))
    checkpoints = Checkpoints(folder, keep=2, trainer=trainer)
    for step in (3, 6):
        checkpoints.save(known_state(trainer, step), {"step": step})
    checkpoints.close()
    return folder, trainer


def test_no_flipped_bit_of_any_file_passes(tmp_path, two_steps):
    folder, _ = two_steps
    copy = Path(shutil.copytree(folder / "6", tmp_path / "6"))
    assert damage_of(copy) is None
    random = np.random.default_rng(0)
    files = files_in(copy)
    sizes = np.array([(copy / file).stat().st_size for file in files])
    # A third where most bytes are, and the others in any file: small ones are metadata.
    chosen = [*files, *random.choice(files, size=FLIPS), *random.choice(files, size=FLIPS // 3, p=sizes / sizes.sum())]
    assert len(chosen) >= FLIPS
    for file in chosen:
        bit = int(random.integers(8 * (copy / file).stat().st_size))
        flip(copy / file, bit)
        damage = damage_of(copy)
        assert damage is not None, (file, bit)
        assert file == CHECKSUMS_FILE or file in damage
        flip(copy / file, bit)
    assert damage_of(copy) is None


@pytest.mark.parametrize("fault", ["flip", "cut", "gone", "no checksum readable"])
@pytest.mark.parametrize("where", ["description/metadata", "llm.weights/manifest.ocdbt", "largest"])
def test_the_one_before_a_damaged_checkpoint_is_restored_and_the_damaged_one_is_kept(
    tmp_path, two_steps, where, fault, caplog
):
    folder, trainer = two_steps
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    newest = run / "6"
    file = max(newest.rglob("ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)
    path = file if where == "largest" else newest / where
    if fault == "flip":
        flip(path, 8 * (path.stat().st_size // 2))
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif fault == "gone":
        path.unlink()
    else:
        (newest / CHECKSUMS_FILE).write_text("{}")
    with caplog.at_level(logging.WARNING):
        state, extra = restore(run, trainer)
    assert (state.step, extra) == (3, {"step": 3})
    assert_known(trainer, state)
    if (where, fault) == ("description/metadata", "gone"):  # that makes it no checkpoint
        assert "no checkpoints, without a description: 6" in caplog.text
        assert sorted(path.name for path in run.iterdir()) == ["3", "6"]
    else:
        named = CHECKSUMS_FILE if fault == "no checksum readable" else str(path.relative_to(newest))
        [line] = [each.getMessage() for each in caplog.records if "step 6 is damaged: " in each.getMessage()]
        assert named in line
        assert sorted(path.name for path in run.iterdir()) == ["3", "6.damaged"]
    checkpoints = Checkpoints(run, keep=2, trainer=trainer)
    state, _ = checkpoints.restore()
    assert state.step == 3
    checkpoints.save(known_state(trainer, 6), {})  # the run goes on to where it was
    checkpoints.close()
    assert checkpoints.latest_step() == 6
    assert len(list(run.glob("6.damaged*"))) == 1


def test_where_none_is_whole_all_stay_and_the_run_does_not_begin_anew(tmp_path, two_steps):
    folder, trainer = two_steps
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    for step in ("3", "6"):
        (run / step / "llm.weights" / "_METADATA").unlink()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"every checkpoint in .*/run is damaged \(step 6: llm.weights/_META"):
            restore(run, trainer)
    assert sorted(path.name for path in run.iterdir()) == ["3", "6"]


def test_an_empty_folder_of_a_later_step_does_not_count(tmp_path, two_steps):
    folder, trainer = two_steps
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    (run / "9").mkdir()
    (run / "9" / "stray").write_text("kept")
    checkpoints = Checkpoints(run, keep=3, trainer=trainer)
    assert checkpoints.latest_step() == 6
    checkpoints.restore()
    checkpoints.save(known_state(trainer, 9), {})
    checkpoints.close()
    assert checkpoints.latest_step() == 9
    assert (run / "9.damaged" / "stray").read_text() == "kept"


def test_weights_of_a_damaged_checkpoint_start_nothing(tmp_path, two_steps):
    folder, _ = two_steps
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    weights = max((run / "6" / "llm.weights").rglob("d/*"), key=lambda path: path.stat().st_size)
    flip(weights, 1000)
    with pytest.raises(CheckpointError, match=r"6 is damaged: bytes 0 to \d+ of llm.weights/\S+ are not what was w"):
        SavedWeights(run)
    flip(weights, 1000)
    # What no weight lies in is not read.
    flip(max((run / "6" / "llm.opt_state").rglob("d/*"), key=lambda path: path.stat().st_size), 1000)
    assert SavedWeights(run).step == 6
    with pytest.raises(CheckpointError, match=r"of llm.opt_state/\S+ are not what was written"):
        SavedWeights(run, average=True)


def test_a_checkpoint_without_checksums_is_restored_with_a_warning(tmp_path, caplog):
    trainer = noisy_on("0")
    save(tmp_path, trainer, step=2)
    (tmp_path / "2" / CHECKSUMS_FILE).unlink()
    with caplog.at_level(logging.WARNING):
        state, _ = restore(tmp_path, trainer)
    assert_known(trainer, state)
    assert "has no checksums" in caplog.text


def test_checksums_of_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 1000)
    content = np.random.default_rng(0).integers(256, size=2500, dtype=np.uint8).tobytes()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "file").write_bytes(content)
    found = checksums_of(tmp_path, ["empty", "file"])
    assert found["empty"] == (0, ())
    assert found["file"] == (2500, tuple(zlib.crc32(content[i : i + 1000]) for i in (0, 1000, 2000)))
    assert from_text(to_text(found)) == found
    (tmp_path / CHECKSUMS_FILE).write_text(to_text(found))
    assert damage_of(tmp_path) is None
    flip(tmp_path / "file", 8 * 1500)
    assert damage_of(tmp_path) == "bytes 1000 to 2000 of file are not what was written"
    (tmp_path / "empty").write_bytes(b"1")
    assert damage_of(tmp_path, lambda file: file == "empty") == "empty has 1 bytes, where 0 were written"
