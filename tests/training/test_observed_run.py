"""One run with everything that looks on: held-out sets, the best checkpoint, callbacks, a profile, the report."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
from jax.profiler import ProfileData

import hetjax
from hetjax.cli import main, train_main
from hetjax.training.callbacks import Callbacks
from tests.harness.digits_run import CONFIG, ONE_DEVICE, write_dataset
from tests.harness.paths import ROOT

STEPS, KINDS = 4, ("forward", "backward")


class Record:
    """Keeps what happens, and what module the state holds."""

    def __init__(self):
        self.events, self.answers = [], []

    def on_step(self, event):
        self.events.append(("step", event.step, event.metrics["loss"]))

    def on_evaluate(self, event):
        self.answers += [each.answer for result in event.results for each in result.given.answered]
        module = hetjax.module_of(event.state, "llm")
        self.events.append(("evaluate", event.step, event.numbers["eval/seen/loss"], type(module).__name__))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of four steps, evaluated after each on two sets, and what its callbacks were given."""
    folder = tmp_path_factory.mktemp("run")
    data = write_dataset(folder / "data", samples=16, content="Which <b>?")
    other = write_dataset(folder / "other", samples=8, content="What?")
    sets = {"seen": {"sources": str(data), "metrics": ["exact_match", "wer", "anls"]}, "other": str(other)}
    arguments = [
        *("--config", CONFIG, "--data.train", str(data), "--data.eval", json.dumps(sets), "--run_dir"),
        *(str(folder / "run"), "--data.batch_size", "8", "--eval.max_new_tokens", "3", "--eval.every", "1"),
        *("--steps", str(STEPS), "--eval.answers", "true", "--checkpoint_every", "10", "--keep_checkpoints", "1"),
        *("--best_checkpoint", "{metric: eval/seen/loss, mode: max}", "--optimizer.learning_rate", "0.01"),
        *("--model.llm.layers", "1", "--model.vision.layers", "1", "--name", "a <run>", *ONE_DEVICE),
        *("--microbatches", "2", "--report", "true", "--profile.steps", "2"),
    ]
    record, saved, stepped = Record(), [], []
    functions = Callbacks(on_save=saved.append, on_step=lambda event: stepped.append(event.step))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        last = hetjax.train(arguments, callbacks=[record, functions])
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return SimpleNamespace(
        folder=folder / "run", other=other, rows=rows, last=last, record=record, saved=saved, stepped=stepped
    )


def test_each_set_has_its_own_metrics_and_its_answers_are_saved(run):
    own = {"eval/seen/loss", "eval/seen/accuracy", "eval/seen/wer", "eval/seen/anls"}
    found = {key for key in run.rows[0] if key.startswith("eval/")}
    assert found == own | {"eval/other/loss", "eval/other/accuracy"}
    names = {path.name for path in (run.folder / "answers").iterdir()}
    assert names == {f"{name}-{step}.jsonl" for name in ("seen", "other") for step in range(1, STEPS + 1)}
    lines = [json.loads(line) for line in (run.folder / "answers" / "seen-4.jsonl").read_text().splitlines()]
    assert [line["where"].rpartition(":")[2] for line in lines] == [str(i + 1) for i in range(16)]
    assert all(line["expected"] == ["one"] and line["prompt"].startswith("user\nWhich <b>?") for line in lines)
    scores = [line["scores"] for line in lines]
    assert run.rows[-1]["eval/seen/accuracy"] == sum(each["exact_match"] for each in scores) / 16
    assert run.rows[-1]["eval/seen/anls"] == pytest.approx(sum(each["anls"] for each in scores) / 16)


def test_the_best_checkpoint_is_kept_beside_the_newest(run):
    found = {row["step"]: row["eval/seen/loss"] for row in run.rows}
    best = max(found, key=found.get)
    assert best < STEPS, "a loss that training lowers is largest early"
    assert json.loads((run.folder / "best.json").read_text()) == {
        "step": best, "metric": "eval/seen/loss", "value": found[best], "checkpoint": f"checkpoints/{best}",
    }  # fmt: skip
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {str(best), str(STEPS)}


def test_a_class_and_functions_are_called_at_each_event(run):
    steps = range(1, STEPS + 1)
    # An evaluation comes ahead of the metrics of its step.
    assert [event[:2] for event in run.record.events] == [(what, i) for i in steps for what in ("evaluate", "step")]
    assert run.record.events[-1][2] == run.last["loss"]
    assert run.record.events[-2][2:] == (run.last["eval/seen/loss"], "LanguageModel")
    assert run.stepped == list(steps) and len(run.record.answers) == STEPS * (16 + 8)
    best = json.loads((run.folder / "best.json").read_text())["step"]
    assert {event.step for event in run.saved} >= {best, STEPS} and all(event.is_main for event in run.saved)
    assert (run.saved[-1].path / "description" / "metadata").exists()


def test_a_profile_names_steps_stages_microbatches_and_modules(run):
    (path,) = (run.folder / "profile").rglob("*.xplane.pb")
    names, steps, programs = set(), set(), set()
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                names.add(event.name)
                stats = dict(event.stats)
                steps |= {stats["step_num"]} if event.name == "train" else set()
                programs |= {stats["hlo_module"]} if "hlo_module" in stats else set()
    assert steps == {2}
    dispatched = {f"{stage} {what} microbatch {i}" for i in (0, 1) for stage in ("vision", "llm") for what in KINDS}
    assert dispatched | {"vision update", "llm update"} <= names
    assert {"vision.tokens->llm.image_tokens activation microbatch 1"} <= names
    assert {"jit_vision_forward", "jit_vision_backward", "jit_llm_forward", "jit_llm_backward"} <= programs


def table(page, title):
    """The rows of the table behind a heading, as texts of their cells."""
    body = page[page.index(f"<h2>{title}</h2>") :]
    body = body[: body.index("</table>")]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [[cell.strip() for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)] for row in rows]


def test_the_report_is_a_page_of_all_that_the_run_was(run):
    page = (run.folder / "report.html").read_text()
    assert "a &lt;run&gt;" in page and "4 of 4 steps; best checkpoint: step" in page
    assert "Which &lt;b&gt;?" in page, "texts of samples are shown as they are"
    assert f"<td>eval/other/loss</td><td>{run.last['eval/other/loss']:.6g}</td>" in page
    assert page.count("data:image/png;base64,") == 4, "curves, placement, two timelines"
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page), "nothing beside the file is needed"
    assert [row[0] for row in table(page, "Placement")] == ["stage", "vision", "llm"]
    _, memory = table(page, "Memory")
    assert memory[:2] == ["0", "vision, llm"] and memory[2].endswith("iB")
    _, measured, simulated, estimated = table(page, "Timeline")
    timed = run.rows[2]
    assert float(measured[1].split()[0]) > 0 and measured[2] == f"{timed['idle/vision']:.1%}"
    programs = sum(timed[f"seconds/{module}"] for module in ("vision", "llm"))
    assert 500 * programs < float(simulated[1].split()[0]) < 2000 * programs, "one device, one program at a time"
    assert estimated[2] == "0.0%"
    assert "learning_rate: 0.01" in page[page.index("<h2>Settings</h2>") :]


def evaluate(capsys, *arguments):
    capsys.readouterr()
    main(["evaluate", *map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def test_hetjax_evaluate_finds_what_the_run_logged_on_another_placement_too(run, capsys, tmp_path):
    want = {key: value for key, value in run.last.items() if key.startswith("eval/")}
    found = evaluate(capsys, "--checkpoint", run.folder, "--answers", tmp_path / "answers")
    assert found.pop("step") == STEPS and found.pop("checkpoint").endswith("checkpoints/4")
    assert found == pytest.approx(want, rel=1e-6)
    saved = (tmp_path / "answers" / "other-4.jsonl").read_text()
    assert saved == (run.folder / "answers" / "other-4.jsonl").read_text()
    settings = ["--config", run.folder / "config.yaml", "--data.eval", run.other, "--eval.metrics", "[]"]
    layout = ["--placement.llm.devices", "0-1", "--placement.llm.tensor", "2"]
    best = json.loads((run.folder / "best.json").read_text())
    found = evaluate(capsys, "--checkpoint", run.folder / best["checkpoint"], *settings, *layout)
    assert found["eval/loss"] == pytest.approx(run.rows[best["step"] - 1]["eval/other/loss"], rel=1e-5)
    assert "eval/accuracy" not in found


@pytest.mark.slow
def test_a_run_that_goes_on_remembers_its_best(run, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    shutil.copytree(run.folder, tmp_path / "run")
    before = (tmp_path / "run" / "best.json").read_text()
    words = ["--run_dir", str(tmp_path / "run"), "--steps", "5", "--report", "false"]
    train_main(["--config", str(run.folder / "config.yaml"), *words])
    assert (tmp_path / "run" / "best.json").read_text() == before
    steps = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert steps == {str(json.loads(before)["step"]), "5"}
