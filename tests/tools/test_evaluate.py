"""hetjax evaluate gives the numbers that the run logged, on another placement too, and the best checkpoint is kept."""

import json
import shutil

import pytest

from hetjax.cli import main, train_main
from tests.harness.digits_run import CONFIG, ONE_DEVICE, write_dataset
from tests.harness.paths import ROOT


def evaluate(capsys, *arguments):
    capsys.readouterr()
    main(["evaluate", *map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps with two held-out sets, evaluated after every step, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    data = write_dataset(folder / "data", samples=16)
    other = write_dataset(folder / "other", samples=8, content="What?")
    sets = {"seen": {"sources": str(data), "metrics": ["exact_match", "wer", "anls"]}, "other": str(other)}
    command = [
        *("--config", CONFIG, "--data.train", str(data), "--data.eval", json.dumps(sets), "--run_dir"),
        *(str(folder / "run"), "--data.batch_size", "8", "--eval.max_new_tokens", "3", "--eval.every", "1"),
        *("--steps", "4", "--eval.answers", "true", "--checkpoint_every", "10", "--keep_checkpoints", "1"),
        *("--best_checkpoint", "{metric: eval/seen/loss, mode: max}", "--optimizer.learning_rate", "0.01"),
        *("--model.llm.layers", "1", "--model.vision.layers", "1"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        train_main([*command, *ONE_DEVICE])
    return folder


def test_each_set_has_its_own_metrics_and_its_answers_are_saved(run):
    rows = logged(run / "run")
    own = {"eval/seen/loss", "eval/seen/accuracy", "eval/seen/wer", "eval/seen/anls"}
    assert {key for key in rows[0] if key.startswith("eval/")} == own | {"eval/other/loss", "eval/other/accuracy"}
    names = {path.name for path in (run / "run" / "answers").iterdir()}
    assert names == {f"{name}-{step}.jsonl" for name in ("seen", "other") for step in range(1, 5)}
    lines = [json.loads(line) for line in (run / "run" / "answers" / "seen-4.jsonl").read_text().splitlines()]
    assert [line["where"].rpartition(":")[2] for line in lines] == [str(i + 1) for i in range(16)]
    assert all(line["expected"] == ["one"] and line["prompt"].startswith("user\nWhich?") for line in lines)
    scores = [line["scores"] for line in lines]
    assert rows[-1]["eval/seen/accuracy"] == sum(each["exact_match"] for each in scores) / 16
    assert rows[-1]["eval/seen/anls"] == pytest.approx(sum(each["anls"] for each in scores) / 16)


def test_the_best_checkpoint_is_kept_beside_the_newest(run):
    found = {row["step"]: row["eval/seen/loss"] for row in logged(run / "run")}
    best = max(found, key=found.get)
    assert best < 4, "a loss that training lowers is largest early"
    about = json.loads((run / "run" / "best.json").read_text())
    assert about == {
        "step": best, "metric": "eval/seen/loss", "value": found[best], "checkpoint": f"checkpoints/{best}",
    }  # fmt: skip
    steps = {path.name for path in (run / "run" / "checkpoints").iterdir()}
    assert steps == {str(best), "4"}


def test_a_checkpoint_evaluates_to_what_the_run_logged_and_on_another_placement(run, capsys, tmp_path):
    want = {key: value for key, value in logged(run / "run")[-1].items() if key.startswith("eval/")}
    found = evaluate(capsys, "--checkpoint", run / "run", "--answers", tmp_path / "answers")
    assert found.pop("step") == 4 and found.pop("checkpoint").endswith("checkpoints/4")
    assert found == pytest.approx(want, rel=1e-6)
    saved = (tmp_path / "answers" / "other-4.jsonl").read_text()
    assert saved == (run / "run" / "answers" / "other-4.jsonl").read_text()
    settings = ["--config", run / "run" / "config.yaml", "--data.eval", run / "other" / "train.jsonl"]
    layout = ["--placement.llm.devices", "0-1", "--placement.llm.tensor", "2", "--eval.metrics", "[]"]
    best = json.loads((run / "run" / "best.json").read_text())["checkpoint"]
    found = evaluate(capsys, "--checkpoint", run / "run" / best, *settings, *layout)
    row = logged(run / "run")[int(best.rpartition("/")[2]) - 1]
    assert found["eval/loss"] == pytest.approx(row["eval/other/loss"], rel=1e-5) and "eval/accuracy" not in found


@pytest.mark.slow
def test_a_run_that_goes_on_remembers_its_best(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    shutil.copytree(run / "run", tmp_path / "run")
    before = (tmp_path / "run" / "best.json").read_text()
    train_main(["--config", str(run / "run" / "config.yaml"), "--run_dir", str(tmp_path / "run"), "--steps", "5"])
    assert (tmp_path / "run" / "best.json").read_text() == before
    steps = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert steps == {str(json.loads(before)["step"]), "5"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("--best_checkpoint.metric", "eval/wer"),
            "best_checkpoint.metric is 'eval/wer', but an evaluation of this run",
        ),
        (("--eval.metrics", "[bleu]"), "eval.metrics names the metric 'bleu'; there are exact_match"),
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
