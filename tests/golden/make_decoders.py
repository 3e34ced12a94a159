"""Golden tensors of Llama and Qwen3, as transformers computes them: python -m tests.golden.make_decoders

Writes tests/golden/<model>.safetensors in float32: the checkpoint's own names, and input.*, output.* and gradient.*.
"""

from __future__ import annotations

import pathlib

import numpy as np
from safetensors.numpy import save_file

from tests.harness.huggingface.decoders import CONFIGS, inputs
from tests.harness.transformers.decoders import run

FOLDER = pathlib.Path(__file__).parent
NAMES = ("llama", "llama-3", "qwen3", "qwen3-moe")


def golden(name: str) -> dict[str, np.ndarray]:
    """What a file holds, by name."""
    given = inputs()
    made = run(CONFIGS[name], given)
    return {
        **made["weights"],
        **{f"input.{key}": array.astype(np.int32) for key, array in given.items()},
        **{f"output.{key}": array for key, array in made["output"].items()},
        **{f"gradient.{key}": array for key, array in made["gradients"].items()},
    }


if __name__ == "__main__":
    for name in NAMES:
        save_file(
            {key: np.ascontiguousarray(array) for key, array in golden(name).items()}, FOLDER / f"{name}.safetensors"
        )
