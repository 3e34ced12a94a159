"""The training speed that is reported, on devices that run programs at once and on ones that run behind the host."""

import contextlib
import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from hetjax.training import report
from hetjax.training.callbacks import Events
from hetjax.training.metrics import read_metrics
from hetjax.training.report import PendingStep, Reporter
from hetjax.training.run_folder import RunFolder

SECONDS, TOKENS = 1.0, 100  # of a step


class Clock:
    def __init__(self):
        self.now = 50.0

    def perf_counter(self):
        return self.now


class Metric:
    """A scalar that is there at some time; whoever reads it waits till then."""

    def __init__(self, clock, ready):
        self.clock, self.ready = clock, ready

    def is_ready(self):
        return self.clock.now >= self.ready

    def __float__(self):
        self.clock.now = max(self.clock.now, self.ready)
        return 1.0


class Rates:
    """Stands in for `Utilisation`: a rate that counts FLOPs a second."""

    def of(self, flops, seconds):
        return {"flops_per_second": flops / seconds}


PARTS = {"loggers": (), "utilisation": Rates(), "events": Events(())}


class Device:
    """Runs steps one after the other: while the host dispatches them, or behind it."""

    def __init__(self, clock, *, at_once):
        self.clock, self.at_once, self.free = clock, at_once, clock.now

    def dispatch(self, step):
        began = self.clock.now
        self.clock.now += SECONDS if self.at_once else 0.01
        self.free = self.clock.now + 0.002 if self.at_once else max(self.free, self.clock.now) + SECONDS
        scalars = {name: Metric(self.clock, self.free) for name in ("loss", "grad_norm")}
        return PendingStep(
            step=step, epoch=0, bad_samples=0, learning_rate=0.1, metrics=scalars, began=began, tokens=TOKENS,
            flops=3 * TOKENS, samples=7, padding={"tokens": 0.25, "clips": 0.5},
        )  # fmt: skip


@pytest.mark.parametrize("at_once", [True, False])
def test_the_speed_of_a_step_counts_no_padding_no_checkpoint_and_no_evaluation(tmp_path, monkeypatch, at_once):
    clock = Clock()
    monkeypatch.setattr(report, "time", clock)
    config = SimpleNamespace(bad_steps=3, name="x", directory=tmp_path, steps=17, log_every=5)
    job = SimpleNamespace(
        is_main=True, unlimited=lambda what: contextlib.nullcontext(), waiting_for_devices=contextlib.nullcontext
    )
    text = io.StringIO()
    reporter, device = (
        Reporter(config, job, RunFolder(tmp_path), Console(file=text, width=200), done=0, **PARTS),
        Device(clock, at_once=at_once),
    )
    with reporter.training():
        pending = None
        for step in range(1, 18):  # as `hetjax.training.loop` does
            pending, before = device.dispatch(step), pending
            if before is not None:
                reporter.report(before, following=pending)
            if step % 6 == 0:
                float(pending.metrics["loss"])
                with reporter.untimed():
                    clock.now += 40.0
            if step % 4 == 0 or step == 17:
                reporter.report(pending)
                with reporter.untimed():
                    clock.now += 9.0
                pending = None
    reporter.close()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 18))
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(TOKENS / SECONDS, rel=0.03), row
        assert row["flops_per_second"] == pytest.approx(3 * TOKENS / SECONDS, rel=0.03), row
        assert (row["tokens"], row["samples"], row["padding/tokens"], row["padding/clips"]) == (TOKENS, 7, 0.25, 0.5)
    assert "tokens/s · padding 25.0 %" in text.getvalue()
