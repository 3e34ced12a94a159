"""Metrics that modules return beside their loss are logged with those of the step, and named where they are none."""

import contextlib
import io
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from rich.console import Console

from hetjax.errors import DivergenceError
from hetjax.training.callbacks import Events
from hetjax.training.metrics import read_metrics
from hetjax.training.report import PendingStep, Reporter
from hetjax.training.run_folder import RunFolder


def pending(accuracy: float) -> PendingStep:
    metrics = {"loss": 1.5, "grad_norm": 0.5, "llm/accuracy": accuracy}
    return PendingStep(
        step=1, epoch=0, bad_samples=0, learning_rate=0.1, began=0.0, tokens=8, samples=2, padding={"tokens": 0.0},
        metrics={name: jnp.asarray(value) for name, value in metrics.items()},
    )  # fmt: skip


def make_reporter(path) -> Reporter:
    config = SimpleNamespace(name="x", directory=path, steps=1, log_every=1, bad_steps=3)
    job = SimpleNamespace(
        is_main=True, unlimited=lambda what: contextlib.nullcontext(), waiting_for_devices=contextlib.nullcontext
    )
    others = {"loggers": (), "utilisation": SimpleNamespace(of=lambda flops, taken: {}), "events": Events(())}
    return Reporter(config, job, RunFolder(path), Console(file=io.StringIO(), width=200), done=0, **others)


def test_a_metric_of_a_module_is_logged(tmp_path):
    reporter = make_reporter(tmp_path)
    with reporter.training():
        reporter.report(pending(0.25))
    reporter.close()
    assert [row["llm/accuracy"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0.25]


def test_one_that_is_no_number_is_named(tmp_path):
    reporter = make_reporter(tmp_path)
    with reporter.training(), pytest.raises(DivergenceError, match=r"the gradient norm 0\.5, llm/accuracy nan; lower"):
        reporter.report(pending(float("nan")))
    reporter.close()
