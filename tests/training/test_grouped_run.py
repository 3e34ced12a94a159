"""A run that packs samples and has batches of several shapes, stopped and gone on with."""

import json

import numpy as np
import pytest
from PIL import Image

from hetjax.cli import train_main
from hetjax.training.metrics import read_metrics
from tests.harness.digits_run import CONFIG, ONE_DEVICE
from tests.harness.paths import ROOT

EXACT = ("step", "epoch", "loss", "grad_norm", "tokens", "samples", "padding/tokens", "padding/images")


@pytest.fixture
def dataset(tmp_path):
    rng, lines = np.random.default_rng(0), []
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(tmp_path / "a.png")
    for length in rng.lognormal(2, 1, 80).astype(int).clip(1, 60):
        asked = {"role": "user", "content": "?" * int(length)}
        lines.append({"messages": [asked, {"role": "assistant", "content": "one"}], "images": ["a.png"] * (length % 2)})
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("grouping", [{"shapes": 3}, {"shapes": 2, "processor.packed": 6}], ids=str)
def test_a_run_goes_on_with_the_same_batches_and_logs_how_full_they_are(
    dataset, tmp_path, monkeypatch, capsys, grouping
):
    monkeypatch.chdir(ROOT)
    sizes = {"seq_len": 160, "batch_size": 4, "processor.images": 2, "processor.packing_window": 12, **grouping}

    def train(folder, steps):
        given = {
            "run_dir": tmp_path / folder,
            "steps": steps,
            "log_every": 1,
            "optimizer.warmup_steps": 0,
            "optimizer.final_learning_rate": 2e-3,
        }
        given |= {"data.train": dataset, "data.eval": "null", **{f"data.{name}": size for name, size in sizes.items()}}
        train_main(
            [
                "--config",
                CONFIG,
                *ONE_DEVICE,
                *(word for key, value in given.items() for word in (f"--{key}", str(value))),
            ]
        )
        return [[row[name] for name in EXACT] for row in read_metrics(tmp_path / folder / "metrics.jsonl")]

    straight = train("straight", 6)
    printed = capsys.readouterr().out
    assert printed.count("rows of ") == grouping["shapes"]
    assert "rows of 160 tokens, 2 images" in printed and "padding" in printed
    train("stopped", 4)
    assert train("stopped", 6) == straight
    assert all(0 <= row[6] < 1 and row[4] > 0 for row in straight)
