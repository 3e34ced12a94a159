"""A checkpoint of a run of the tiny LFM2-VL model, without training, and what `hetjax convert` makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import yaml

from tests.harness.convert_tool import convert
from tests.harness.huggingface.folders import tensors_of, write_folder
from tests.harness.huggingface.lfm2_vl_model import CONFIG

REST = """
name: tiny
placement: {vision: {devices: 0}, llm: {devices: 0}}
data:
  {train: none.jsonl, seq_len: 64, batch_size: 1, processor: {image_rows: 32, resolution: {patch_size: 4, merge: 1}}}
optimizer: {learning_rate: 1.0e-3}
steps: 1
"""


def run_of_the_model(folder: Path) -> Path:
    """A run's folder with a checkpoint and its settings."""
    tensors = tensors_of(CONFIG, np.float32)
    # Kernels of a size at which float32 can be compared.
    tensors = {name: each * 0.2 if each.ndim > 1 else each for name, each in tensors.items()}
    ours = convert(write_folder(folder / "hf", CONFIG, tensors), folder / "ours")
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.move(ours / "0", run / "checkpoints" / "0")
    shutil.rmtree(run / "checkpoints" / "0" / "huggingface")
    settings = yaml.safe_load(REST) | yaml.safe_load((ours / "model.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return run


def export_of_a_run(folder: Path) -> Path:
    """The Hugging Face folder of that run."""
    return convert(run_of_the_model(folder), folder / "out", "--family", "lfm2_vl")
