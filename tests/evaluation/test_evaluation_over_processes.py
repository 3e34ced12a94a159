"""A job of four processes evaluates to what one process finds of its checkpoint, and all of them agree on the best."""

import json

import pytest

from hetjax.cli import main
from hetjax.data import write_digits
from tests.harness.processes import free_port
from tests.harness.training_job import ROOT, TrainingJob, checkpoints, command, rows

pytestmark = [pytest.mark.slow, pytest.mark.quick]


def test_four_processes_find_what_one_does_and_keep_the_same_best_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    data, run = write_digits(tmp_path / "digits", held_out=24), tmp_path / "run"
    settings = {
        "data.eval": data / "heldout.jsonl", "eval.every": 2, "eval.batch_size": 24, "model.vision.layers": 1,
        "eval.answers": True, "keep_checkpoints": 1, "best_checkpoint.metric": "eval/loss",
    }  # fmt: skip
    words = command(run, data, steps=5, **{name.replace(".", "__"): value for name, value in settings.items()})
    with TrainingJob(tmp_path / "logs", words, free_port()) as job:
        codes, _ = job.end(240)
        assert set(codes.values()) == {0}, job.all_output()
        assert "best checkpoint: step" in job.output(0)
    found = {row["step"]: row["eval/loss"] for row in rows(run) if "eval/loss" in row}
    best = json.loads((run / "best.json").read_text())
    assert list(found) == [2, 4, 5] and best["step"] == min(found, key=found.get)
    assert sorted({best["step"], 5}) == checkpoints(run)
    assert (run / "report.html").exists() and len((run / "answers" / "answers-5.jsonl").read_text().splitlines()) == 24

    main(["evaluate", "--checkpoint", str(run), "--json"])
    alone = json.loads(capsys.readouterr().out)
    assert alone["eval/loss"] == pytest.approx(found[5], rel=1e-5)
    assert alone["eval/accuracy"] == rows(run)[-1]["eval/accuracy"]
