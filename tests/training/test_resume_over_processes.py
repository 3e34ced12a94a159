"""A run of four processes that goes on in two, and in one: the same samples, mixed, shuffled and packed.

    python -m pytest -n 0 -m exhaustive tests/training/test_resume_over_processes.py

Losses and gradient norms of every step tell the samples: the devices are the same eight in each of the three.
"""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hetjax.training.metrics import read_metrics
from tests.harness.compile_quickly import environment
from tests.harness.digits_run import CONFIG
from tests.harness.paths import ROOT

STEPS, STOP = 8, 4
COUNTS = ("step", "epoch", "tokens", "samples")
NUMBERS = ("loss", "grad_norm")


@pytest.fixture
def sources(tmp_path):
    """Two files of conversations with pictures, all different."""
    rng, paths = np.random.default_rng(0), []
    for source in "ab":
        lines = []
        for number in range(60):
            name = f"{source}{number}.png"
            Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(tmp_path / name)
            asked = {"role": "user", "content": "?" * int(rng.integers(1, 50))}
            answer = {"role": "assistant", "content": f"{source}{number}"}
            lines.append({"messages": [asked, answer], "images": [name] * int(number % 2)})
        paths.append(tmp_path / f"{source}.jsonl")
        paths[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


def train(run, sources, steps, processes, sizes, *, weight=1, resume="same"):
    """Train up to a step, and return the metrics of all steps."""
    mixed = [{"path": str(path), "weight": each} for path, each in zip(sources, (2, weight), strict=True)]
    given = {
        "run_dir": run, "steps": steps, "log_every": 1, "checkpoint_every": STOP, "resume": resume,
        "optimizer.warmup_steps": 0, "optimizer.final_learning_rate": 2e-3, "data.train": json.dumps(mixed),
        "data.eval": "null", **{f"data.{name}": value for name, value in sizes.items()},
    }  # fmt: skip
    words = [
        "train.py",
        "--config",
        CONFIG,
        *(str(word) for item in given.items() for word in (f"--{item[0]}", item[1])),
    ]
    launch = ["-m", "hetjax", "launch", "--processes", str(processes), "--"] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *launch, *words],
        cwd=ROOT,
        env=environment(quick=True),
        timeout=400,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return read_metrics(run / "metrics.jsonl")


def alike(one, other):
    assert [[row[name] for name in COUNTS] for row in one] == [[row[name] for name in COUNTS] for row in other]
    for name in NUMBERS:
        np.testing.assert_allclose([row[name] for row in one], [row[name] for row in other], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "sizes",
    [
        {"processor.packed": 3, "processor.packing_window": 24},
        {"shapes": 2, "processor.packed": 3, "processor.packing_window": 24},
        {"processor.balance": "true"},
    ],
    ids=("packed", "shapes", "balanced"),
)
def test_four_processes_go_on_as_two_and_as_one_with_the_same_samples(tmp_path, sources, sizes):
    sizes = {"seq_len": 160, "batch_size": 8, "processor.images": 2, **sizes}
    straight = train(tmp_path / "straight", sources, STEPS, 1, sizes)
    train(tmp_path / "four", sources, STOP, 4, sizes)
    for folder in ("two", "changed_two", "changed_one"):
        shutil.copytree(tmp_path / "four", tmp_path / folder)
    alike(train(tmp_path / "two", sources, STEPS, 2, sizes), straight)
    # With the weight of a source changed from there on.
    changed = [
        train(tmp_path / f"changed_{name}", sources, STEPS, count, sizes, weight=9, resume="changed")
        for name, count in (("two", 2), ("one", 1))
    ]
    alike(*changed)
    assert [row["loss"] for row in changed[0]][:STOP] == pytest.approx(
        [row["loss"] for row in straight][:STOP], rel=1e-4
    )
    assert abs(changed[0][-1]["loss"] - straight[-1]["loss"]) > 1e-3 * straight[-1]["loss"]
