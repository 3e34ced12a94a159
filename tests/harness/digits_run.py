"""A dataset that the config of the digits trains on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

CONFIG = "configs/digits.yaml"
# Its modules on one device, for a run whose layout is not what is tested: its programs compile sooner.
ONE_DEVICE = [
    *("--placement.vision.devices", "0", "--placement.vision.data", "1", "--placement.llm.devices", "0"),
    *("--placement.llm.data", "1", "--placement.llm.tensor", "1", "--microbatches", "1"),
    *("--report", "false"),
]


def write_dataset(folder: Path, samples: int = 8, *, content: str = "Which?", images: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    lines = []
    for i in range(samples):
        names = [f"{i}-{k}.png" for k in range(images)]
        for name in names:
            Image.fromarray(np.full((8, 8), 12 * i, np.uint8)).save(folder / name)
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "one"}]
        lines.append(json.dumps({"messages": messages, "images": names}))
    path = folder / "train.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return path
