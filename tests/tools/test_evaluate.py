"""What no evaluation gives is refused (tests/training/test_observed_run.py evaluates a checkpoint)."""

import pytest

from hetjax.cli import main, train_main
from tests.harness.digits_run import CONFIG, ONE_DEVICE, write_dataset
from tests.harness.paths import ROOT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("--best_checkpoint.metric", "eval/wer"),
            "best_checkpoint.metric is 'eval/wer', but an evaluation of this run",
        ),
        (("--data.eval", "null", "--best_checkpoint.metric", "eval/loss"), "gives none, as data.eval is null"),
    ],
)
def test_what_no_evaluation_gives_is_refused_before_training(tmp_path, capsys, monkeypatch, changes, message):
    monkeypatch.chdir(ROOT)
    data = str(write_dataset(tmp_path / "data"))
    paths = ["--data.train", data, "--data.eval", data, "--run_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        train_main(["--config", CONFIG, *paths, "--data.batch_size", "8", *ONE_DEVICE, *changes])
    assert stop.value.code == 2 and message in " ".join(capsys.readouterr().err.split())


def test_a_folder_without_settings_needs_them(tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--checkpoint", str(tmp_path)])
    assert stop.value.code == 2
