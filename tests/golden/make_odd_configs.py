"""Odd language models of transformers, their config.json and their logits: python -m tests.golden.make_odd_configs

Writes tests/golden/odd_configs.json and odd_configs.safetensors. Weights are not stored: `random_tensors` makes them
from the names and shapes of a model.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.harness.huggingface.odd_configs import CONFIGS, tokens
from tests.harness.transformers.odd_models import config_json, logits_of_folder, save_model

FOLDER = Path(__file__).parent


def main() -> None:
    """Write both files."""
    configs, logits = {}, {}
    for name, odd in CONFIGS.items():
        configs[name] = config_json(odd)
        if odd.refused is None:
            with tempfile.TemporaryDirectory() as folder:
                save_model(odd, Path(folder))
                logits[name] = logits_of_folder(Path(folder), tokens())
    (FOLDER / "odd_configs.json").write_text(json.dumps(configs, indent=1) + "\n")
    save_file({name: np.ascontiguousarray(each) for name, each in logits.items()}, FOLDER / "odd_configs.safetensors")


if __name__ == "__main__":
    main()
