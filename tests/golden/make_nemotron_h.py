"""Golden tensors of Nemotron-H, as transformers computes them: python -m tests.golden.make_nemotron_h

Writes tests/golden/nemotron_h.safetensors in float32: the checkpoint's own names, and input.*, output.* and gradient.*.
"""

from __future__ import annotations

import pathlib

import numpy as np
from safetensors.numpy import save_file

from tests.harness.huggingface.hybrids import CONFIGS, inputs
from tests.harness.transformers.hybrids import run

FILE = pathlib.Path(__file__).parent / "nemotron_h.safetensors"

if __name__ == "__main__":
    given = inputs()
    made = run(CONFIGS["hybrid"], given)
    tensors = {
        **made["weights"],
        **{f"input.{key}": array.astype(np.int32) for key, array in given.items()},
        **{f"output.{key}": array for key, array in made["output"].items()},
        **{f"gradient.{key}": array for key, array in made["gradients"].items()},
    }
    save_file({key: np.ascontiguousarray(array) for key, array in tensors.items()}, FILE)
