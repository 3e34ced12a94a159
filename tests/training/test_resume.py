"""A run that is killed and started again leaves the same metrics as one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hetjax.data import write_digits, write_shapes
from tests.harness.compile_quickly import environment
from tests.harness.paths import ROOT

STEPS = {"digits": 24, "omni_tiny": 9}
# Every kind of layer and of medium, once: what is resumed is neither deep nor wide.
SMALL = {
    "digits": [],
    "omni_tiny": ["--model.changes", json.dumps({"llm.pattern": "M*E", "vision.layers": 1, "audio.layers": 1})],
}
EXACT = ("step", "epoch", "loss", "grad_norm", "learning_rate", "bad_samples", "eval/accuracy")


def command(run_dir: Path, data: Path, config: str) -> list[str]:
    steps = STEPS[config]
    settings = {
        "run_dir": run_dir, "data.train": data / "train.jsonl", "data.eval": data / "heldout.jsonl", "steps": steps,
        "checkpoint_every": steps // 4, "eval.every": steps // 3, "data.batch_size": 8, "eval.max_new_tokens": 3,
    }  # fmt: skip
    overrides = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "train.py", "--config", f"configs/{config}.yaml", *SMALL[config], *overrides]


def rows(run_dir: Path) -> list[dict]:
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_until_killed(arguments: list[str], run_dir: Path, steps: int, env: dict[str, str]) -> None:
    """Start a run and `kill -9` it as soon as its log shows `steps` steps."""
    process = subprocess.Popen(arguments, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 240
    try:
        while process.poll() is None and time.monotonic() < deadline:
            path = run_dir / "metrics.jsonl"
            if path.exists() and path.read_text().count("\n") >= steps:
                break
            time.sleep(0.02)
        assert process.poll() is None, "the run ended before it was killed"
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("config", STEPS)
def test_a_killed_run_continues_bit_for_bit(config, tmp_path):
    write = write_shapes if config == "omni_tiny" else write_digits
    data = write(tmp_path / "data")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # One of them runs as a user's does; runs that are killed again and again are those of `test_kill_one_of_four`.
    env = environment(quick=config != "digits")
    subprocess.run(command(whole, data, config), cwd=ROOT, env=env, check=True, timeout=400, stdout=subprocess.DEVNULL)
    at = random.randrange(1, STEPS[config] - 1)
    run_until_killed(command(killed, data, config), killed, at, env)
    subprocess.run(command(killed, data, config), cwd=ROOT, env=env, check=True, timeout=400, stdout=subprocess.DEVNULL)

    expected, actual = rows(whole), rows(killed)
    assert [row["step"] for row in actual] == list(range(1, STEPS[config] + 1))
    for one, other in zip(expected, actual, strict=True):
        assert {k: one.get(k) for k in EXACT} == {k: other.get(k) for k in EXACT}, f"killed at {at}"
    assert (killed / "loss.png").stat().st_size > 10_000
