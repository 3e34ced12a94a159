"""`train.py` with media balanced over their encoders' shards: the loss of the run without, and what it writes of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hetjax.data import write_shapes
from tests.harness.compile_quickly import environment
from tests.harness.paths import ROOT

STEPS = 2


def run(directory: Path, data: Path, **settings) -> list[dict]:
    """The metrics of a few steps of a small model, without held-out data."""
    settings = {
        "run_dir": directory, "data.train": data / "train.jsonl", "data.eval": "null", "steps": STEPS,
        "model.changes": '{"llm.pattern": "M*E"}', **settings,
    }  # fmt: skip
    overrides = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    arguments = [sys.executable, "train.py", "--config", "configs/omni_tiny.yaml", *overrides]
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment(quick=True), timeout=300, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert ("media are balanced" in done.stdout) == ("data.processor.balance" in settings)
    return rows


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_balanced_run_has_the_loss_of_one_that_is_not_and_says_how_even_it_is(tmp_path):
    data = write_shapes(tmp_path / "data")
    plain, balanced = (
        run(tmp_path / name, data, **settings)
        for name, settings in (("plain", {}), ("balanced", {"data.processor.balance": "true"}))
    )
    for one, other in zip(plain, balanced, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
        for module in ("vision", "audio"):
            assert 1 <= other[f"{module}/imbalance"] <= other[f"{module}/imbalance_in_order"]
            assert other[f"{module}.tokens/bytes_needed"] <= other[f"{module}.tokens/bytes_sent"]
        assert not [name for name in one if "imbalance" in name or "bytes_" in name]
    assert min(row["vision/imbalance"] for row in balanced) < max(row["vision/imbalance_in_order"] for row in balanced)
