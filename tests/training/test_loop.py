"""The training run: what it logs, how it stops, and what it refuses to go on with."""

import json
import math
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hetjax.cli import train_main
from hetjax.cluster.interrupt import StopRequest
from hetjax.config.build_optimizer import decays, learning_rate
from hetjax.config.optimizer_config import OptimizerConfig
from hetjax.errors import DataError
from hetjax.evaluation.evaluator import Evaluator
from tests.harness.digits_run import CONFIG, ONE_DEVICE, write_dataset
from tests.harness.paths import ROOT

SMALL = ["--data.batch_size", "8", "--eval.max_new_tokens", "2", "--log_every", "1"]


def arguments(tmp_path: Path, *more: str) -> list[str]:
    data = write_dataset(tmp_path / "data", samples=16)
    paths = ["--data.train", str(data), "--data.eval", str(data), "--run_dir", str(tmp_path / "run")]
    return ["--config", CONFIG, *paths, *SMALL, *ONE_DEVICE, *more]


def rows(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """The folder of a run of two steps. A test that goes on from it takes a copy."""
    folder = tmp_path_factory.mktemp("two-steps")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        train_main(arguments(folder, "--steps", "2"))
    return folder


def test_a_run_leaves_its_settings_metrics_curves_and_checkpoints(tmp_path, capsys, monkeypatch):
    train_main(arguments(tmp_path, "--steps", "5", "--eval.every", "2"))
    logged = rows(tmp_path)
    assert [row["step"] for row in logged] == [1, 2, 3, 4, 5]
    for row in logged:
        assert {"loss", "tokens_per_second", "grad_norm", "learning_rate"} <= set(row)
    assert [row["step"] for row in logged if "eval/accuracy" in row] == [2, 4, 5]
    assert [row["step"] for row in logged if "seconds/vision" in row] == [3]
    assert [row["step"] for row in logged if "idle/vision" in row] == [3]
    assert [row["step"] for row in logged if row.get("tflops_per_second", 0) > 0] == [1, 2, 4, 5]
    # An evaluated step is no slower on paper for its evaluation, nor faster for what it overlapped.
    assert 0.1 < logged[3]["tokens_per_second"] / logged[4]["tokens_per_second"] < 10
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "loss.png", "tensorboard", "checkpoints"} <= names
    printed = capsys.readouterr().out
    assert "placement" in printed
    assert "step 5/5" in printed

    # The settings kept in the folder start the same run, which has nothing left to do, nor to compile.
    monkeypatch.delattr("hetjax.training.loop.compile_programs")
    train_main(["--config", str(tmp_path / "run" / "config.yaml")])
    printed = " ".join(capsys.readouterr().out.split())
    assert "has ended: its checkpoint is of step 5 of 5; raise steps to go on" in printed
    assert rows(tmp_path) == logged


def test_held_out_answers_are_counted_by_group_and_once_more_with_images_blanked(tmp_path, capsys):
    command = arguments(tmp_path, "--steps", "2", "--eval.every", "1", "--eval.by", "task", "--eval.blank", "[image]")
    path = tmp_path / "data" / "train.jsonl"
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({"task": "ab"[i % 2], **each}) + "\n" for i, each in enumerate(samples)))
    train_main(command)
    first, last = ({key for key in row if key.startswith("eval/")} for row in rows(tmp_path))
    assert first == {"eval/loss", "eval/accuracy", "eval/task/a", "eval/task/b"}
    assert last == first | {"eval/blank_image/accuracy", "eval/blank_image/task/a", "eval/blank_image/task/b"}
    printed = capsys.readouterr().out
    assert printed.count("held-out answers") == 2 and printed.count("image blanked") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--eval.by", "colour"), "eval.by is 'colour', which samples may not have; give one of id"),
        (("--eval.by", "task"), "train.jsonl:1: the sample has no key 'task', by which eval.by counts answers"),
        (("--eval.blank", "[audio]"), "eval.blank names audio, but the run takes image; leave it out"),
    ],
)
def test_groups_and_blanks_that_no_sample_has_are_refused_before_training(tmp_path, capsys, changes, message):
    with pytest.raises(SystemExit) as stop:
        train_main(arguments(tmp_path, *changes))
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_the_time_that_steps_wait_for_data_is_measured(tmp_path, capsys, monkeypatch):
    from hetjax.training import loop

    batches = loop._batches

    def slow(run):
        for batch in batches(run):
            time.sleep(1.5 if run.progress.state.step == 2 else 0)
            yield batch

    monkeypatch.setattr(loop, "_batches", slow)
    train_main(arguments(tmp_path, "--steps", "4"))
    waits = [row["data_wait"] for row in rows(tmp_path)]
    assert waits[2] >= 1.5 > max(waits[1], waits[3])
    share = float(re.search(r"waiting for data took ([0-9.]+) % of the steps' time", capsys.readouterr().out)[1])
    taken = sum(row["tokens"] / row["tokens_per_second"] for row in rows(tmp_path))
    assert share == pytest.approx(100 * sum(waits) / taken, rel=0.02)


def test_a_run_goes_on_in_another_layout_from_the_same_checkpoint(two_steps, tmp_path, capsys):
    shutil.copytree(two_steps / "run", tmp_path / "run")
    other = ["--placement.llm.devices", "1-2", "--placement.llm.data", "2", "--microbatches", "2"]
    train_main(arguments(tmp_path, "--steps", "3", *other))
    printed = capsys.readouterr().out
    assert "resuming after step 2" in printed
    assert "the run had 2 steps and now has 3: the learning rate (cosine)" in printed
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_a_signal_finishes_the_step_saves_and_exits_with_130(tmp_path, capsys, monkeypatch):
    from hetjax.training import loop

    step = loop.train_step

    def interrupted(run, batch):
        if run.progress.state.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(run, batch)

    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(SystemExit) as stop:
        train_main(arguments(tmp_path, "--steps", "9"))
    assert stop.value.code == 130
    assert "stopped after step 2; run the same command to go on" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    train_main(arguments(tmp_path, "--steps", "4"))
    assert "resuming after step 2" in capsys.readouterr().out
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]


def test_a_run_whose_folder_vanishes_ends_with_an_error_and_does_not_say_done(tmp_path, capsys, monkeypatch):
    from hetjax.training import loop

    step = loop.train_step

    def deleting(run, batch):
        if run.progress.state.step == 1:
            shutil.rmtree(tmp_path / "run")
        return step(run, batch)

    monkeypatch.setattr(loop, "train_step", deleting)
    with pytest.raises(SystemExit) as stop:
        train_main(arguments(tmp_path, "--steps", "3", "--data.eval", "null"))
    assert stop.value.code == 2
    told = capsys.readouterr()
    assert "run was deleted or replaced while it ran" in " ".join(told.err.split())
    assert "done" not in told.out


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        huge = [
            "--optimizer.learning_rate",
            "1e30",
            "--optimizer.max_grad_norm",
            "null",
            "--optimizer.warmup_steps",
            "0",
            "--bad_steps",
            "0",
        ]
        train_main(arguments(tmp_path, "--steps", "9", "--checkpoint_every", "1", *huge))
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "learning_rate" in message
    logged = rows(tmp_path)
    assert all(math.isfinite(row["loss"]) for row in logged)
    assert f"step {len(logged) + 1}" in message
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert max(saved) == len(logged)


def test_a_refused_resume_leaves_the_settings_of_the_run_as_they_were(two_steps, tmp_path, capsys):
    shutil.copytree(two_steps / "run", tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(SystemExit):
        train_main(arguments(tmp_path, "--steps", "3", "--model.llm.mlp_width", "64"))
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_epochs_too_few_for_the_steps_are_refused_before_training(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train_main(arguments(tmp_path, "--steps", "5", "--data.epochs", "2"))
    assert stop.value.code == 2
    assert "16 samples in 2 epochs are not enough for 5 steps of 8" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_bad_sample_whose_name_looks_like_markup_is_named_as_it_is(tmp_path, capsys):
    command = arguments(tmp_path, "--steps", "1", "--data.max_bad_share", "0.5", "--data.eval", "null")
    path = tmp_path / "data" / "train.jsonl"
    path.write_text(path.read_text().replace("3-0.png", "x[/b].png"))
    train_main(command)
    assert "x[/b].png" in capsys.readouterr().out


def test_a_text_only_model_trains_and_answers(tmp_path, capsys):
    lines = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yes"}]} for i in range(8)
    ]
    data = tmp_path / "text.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tmp_path / "text.yaml"
    config.write_text(
        f"""
name: text
fake_devices: 8
placement: {{llm: {{devices: 0-1, tensor: 2}}}}
model:
  llm: {{vocab_size: 288, width: 16, layers: 1, heads: 2, kv_heads: 2, head_dim: 8, mlp_width: 32}}
data: {{train: {data}, eval: {data}, seq_len: 40, batch_size: 4}}
optimizer: {{learning_rate: 1.0e-2}}
steps: 2
run_dir: {tmp_path / "run"}
eval: {{max_new_tokens: 3}}
"""
    )
    train_main(["--config", str(config)])
    assert "eval/accuracy" in rows(tmp_path)[-1]


def test_learning_rate_rises_from_the_first_step_and_ends_at_the_final_one():
    rate = learning_rate(OptimizerConfig(learning_rate=1.0, final_learning_rate=0.1, warmup_steps=4), 20)
    assert np.allclose([rate(done) for done in range(4)], [0.25, 0.5, 0.75, 1.0])
    assert np.isclose(rate(19), 0.1)


def test_weight_decay_is_for_matrices_of_a_layer():
    assert decays("head/kernel", 2)
    assert decays("layers/group2/group1/layer0/mixer/up", 3)
    assert not decays("layers/block/attention/query/bias", 2)
    assert not decays("layers/group2/group1/layer0/mixer/A_log", 1)
    assert not decays("layers/block/mlp_norm/scale", 1)


def test_a_second_signal_is_not_held_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_in_another_thread_leaves_the_signals_alone():
    seen = []
    worker = threading.Thread(target=lambda: seen.append(StopRequest().__enter__().requested))
    worker.start()
    worker.join()
    assert seen == [False]


def test_steps_are_saved_before_too_many_bad_held_out_samples_end_the_run(tmp_path, capsys, monkeypatch):
    def fail(evaluator, state, *, blank):
        raise DataError("all held-out samples are bad")

    monkeypatch.setattr(Evaluator, "evaluate", fail)
    with pytest.raises(SystemExit) as stop:
        train_main(arguments(tmp_path, "--steps", "3", "--eval.every", "2"))
    assert stop.value.code == 2 and "all held-out samples are bad" in capsys.readouterr().err
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
