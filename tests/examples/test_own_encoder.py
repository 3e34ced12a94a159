"""examples/own_encoder.yaml trains, by train.py, on its two meshes."""

import json

import numpy as np
import pytest

from hetjax.cli import train_main
from hetjax.config.build import build_trainer
from hetjax.config.run_config import load_config
from tests.harness.digits_run import write_dataset
from tests.harness.paths import ROOT

CONFIG = "examples/own_encoder.yaml"
SCHEMA = {"class_path": "examples.own_encoder.with_question", "init_args": {"question": "Digit?"}}


def test_the_code_is_short():
    assert len((ROOT / "examples/own_encoder.py").read_text().splitlines()) <= 80


def test_the_example_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    source = {"path": str(write_dataset(tmp_path / "data")), "schema": SCHEMA}
    changes = {"run_dir": tmp_path / "run", "steps": 2, "data.batch_size": 8, "data.eval": "null"}
    changes |= {"microbatches": 1, "model.llm.layers": 1, "profile_every": "null"}  # fewer programs to compile
    arguments = [f"--{name}={value}" for name, value in changes.items()]
    train_main(["--config", CONFIG, *arguments, f"--data.train={json.dumps(source)}"])
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len([line["loss"] for line in lines if np.isfinite(line.get("loss", np.nan))]) == 2


@pytest.mark.slow
@pytest.mark.quick
def test_its_encoder_has_the_same_numbers_on_one_device(monkeypatch):
    monkeypatch.chdir(ROOT)
    random = np.random.default_rng(0)
    labels = random.integers(0, 288, (8, 24)).astype(np.int32)
    batch = {
        "vision": {"images": random.normal(size=(8, 1, 16, 16, 3)).astype(np.float32)},
        "llm": {
            "tokens": labels,
            "labels": labels,
            "loss_weights": np.ones((8, 24), np.float32),
            "image_positions": np.tile(np.arange(16, dtype=np.int32), (8, 1)),
        },
    }
    alone = "{vision: {devices: 0, data: 1, tensor: 1}, llm: {devices: 0, data: 1}}"
    found = []
    for changes in ([], ["--placement", alone, "--microbatches", "1"]):
        trainer = build_trainer(load_config(["--config", CONFIG, *changes])[0])
        found.append(trainer.loss_and_gradients(trainer.init(0), batch))
    (loss, gradients), (expected, others) = found
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for path, gradient in others["vision"].items():
        np.testing.assert_allclose(
            gradients["vision"][path], gradient, atol=1e-5 * np.abs(gradient).max(), err_msg=path
        )
