"""Bad input to train.py ends with one message that names the culprit and the fix, and exit code 2."""

from __future__ import annotations

import json

import pytest

from tests.harness.digits_run import ONE_DEVICE, write_dataset

REFUSED = {
    "an unknown setting": (["--optimizer.learningrate", "1"], ["learningrate", "did you mean", "learning_rate"]),
    "a value of the wrong type": (["--steps", "many"], ["steps", "many", "int"]),
    "degrees that do not fit": (["--placement.llm.tensor", "4"], ["llm", "data*tensor = 2*4 = 8", "4-7", "are 4"]),
    "a device listed twice": (["--placement.vision.devices", "0,1,1,2"], ["vision", "device 1 twice"]),
    "a device that is not there": (["--placement.llm.devices", "5-8"], ["llm", "device 8", "fake_devices"]),
    "a batch that does not divide": (["--data.batch_size", "6"], ["6", "vision", "data=4", "batch_size"]),
    "heads that do not divide": (
        ["--placement.llm.tensor", "4", "--placement.llm.data", "1"],
        ["llm", "kv_heads", "4", "tensor"],
    ),
    "more stages than layers divide": (
        ["--placement.llm.stage", "4", "--placement.llm.data", "1", "--placement.llm.tensor", "1"],
        ["2", "4", "stages"],
    ),
    "an unknown schedule": (["--schedule", "zigzag"], ["zigzag", "gpipe", "1f1b"]),
    "a module that is not there": (["--optimizer.frozen", "[audio]"], ["audio", "vision", "llm"]),
    "an offloaded module that is not there": (["--offload", "[audio]"], ["offload", "audio", "vision, llm"]),
    "an offloaded module that is never idle": (["--offload", "[llm]"], ["offload", "'llm'", "loss", "vision"]),
    "widths that do not meet": (["--model.vision.output_width", "32"], ["output_width", "32", "64"]),
    "a vocabulary that is too small": (["--model.llm.vocab_size", "100"], ["vocab_size", "100", "288"]),
    "an unknown target": (["--target", "h300x8"], ["h300x8", "a100, h100, h200, b200"]),
    "a placement larger than the target": (["--target", "h100x4"], ["'llm'", "8 devices", "has 4", "--target h100x8"]),
    "an option of targets without one": (["--only", "llm"], ["--only", "--target"]),
    "a mistyped option of targets": (["--traget", "h100x8"], ["did you mean 'target'"]),
    "a missing config": (["--config", "configs/none.yaml"], ["configs/none.yaml"]),
    "a missing dataset": (["--data.train", "nowhere.jsonl", "--demo_data", "null"], ["nowhere.jsonl"]),
    "a missing tokenizer": (["--data.tokenizer", "none.json"], ["none.json"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_before_training_with_its_culprit(case, run):
    arguments, words = REFUSED[case]
    code, message = run(*arguments)
    assert code == 2
    assert "Traceback" not in message
    for word in words:
        assert word in message, message


def test_an_empty_dataset_is_refused(run, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    code, message = run(data=path)
    assert code == 2
    assert "empty.jsonl" in message


def test_a_missing_image_is_refused_with_its_line(run, tmp_path):
    path = write_dataset(tmp_path / "data")
    (tmp_path / "data" / "3-0.png").unlink()
    code, message = run(data=path)
    assert code == 2
    assert "train.jsonl:4" in message
    assert "3-0.png" in message


def test_image_marks_that_differ_from_the_images_are_refused_with_both_counts(run, tmp_path):
    path = write_dataset(tmp_path / "data", content="<image> and <image>?")
    code, message = run(data=path)
    assert code == 2
    assert "train.jsonl:1" in message
    assert "2" in message
    assert "1" in message


def test_a_truncated_image_is_skipped_named_and_counted_until_their_share_is_too_large(run, tmp_path, capsys):
    path = write_dataset(tmp_path / "data", samples=20)
    broken = tmp_path / "data" / "5-0.png"
    broken.write_bytes(broken.read_bytes()[:40])
    code, message = run("--data.max_bad_share", "0.2", *ONE_DEVICE, data=path)
    assert code is None, message
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    other = ["--run_dir", str(tmp_path / "other"), "--steps", "9", *ONE_DEVICE]
    code, message = run("--data.max_bad_share", "0.01", *other, data=path)
    assert code == 2
    assert "5-0.png" in message
    assert "max_bad_share" in message


def test_a_checkpoint_of_another_model_is_refused(run, tmp_path):
    code, message = run(*ONE_DEVICE)
    assert code is None, message
    wider = ["--model.llm.mlp_width", "64"]
    code, message = run(*wider, *ONE_DEVICE)
    assert code == 2
    assert "mlp" in message
    assert "128" in message
    assert "64" in message


def test_a_full_disk_while_saving_ends_the_run_with_the_reason(run, tmp_path, monkeypatch):
    import errno

    from orbax.checkpoint import PyTreeCheckpointHandler

    async def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PyTreeCheckpointHandler, "async_save", full)
    code, message = run(*ONE_DEVICE)
    assert code == 2
    assert "No space left on device" in message
    assert "step 2" in message


def test_a_full_disk_while_logging_ends_the_run_with_the_reason(run, tmp_path):
    (tmp_path / "run").mkdir()
    # The log is begun under this name, then renamed: all that is written to it meets a full disk.
    (tmp_path / "run" / "metrics.jsonl.partial").symlink_to("/dev/full")
    code, message = run(*ONE_DEVICE)
    assert code == 2
    assert "No space left on device" in message
