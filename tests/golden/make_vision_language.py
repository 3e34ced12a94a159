"""Golden tensors of tiny vision-language models, as transformers computes them.

    python -m tests.golden.make_vision_language

Writes llava.safetensors in float32: "weight.*" and "gradient.*" have the names of a released checkpoint; gradients are
of "output.loss". Needs the extra `parity`.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.harness.huggingface import llava_model
from tests.harness.transformers.vision_language import build, run


def llava() -> dict[str, np.ndarray]:
    """What the file of LLaVA holds, by name."""
    given = llava_model.given()
    images = np.ascontiguousarray(np.moveaxis(given["images"], -1, 1))
    made = run(build(llava_model.CONFIG), given["labels"], input_ids=given["tokens"], pixel_values=images)
    return held(given, made)


def held(given: dict[str, np.ndarray], made: dict) -> dict[str, np.ndarray]:
    """Inputs, outputs, weights and gradients in one."""
    return {
        **{
            f"input.{name}": array.astype(np.int32) if array.dtype == np.int64 else array
            for name, array in given.items()
        },
        **{f"output.{name}": made[name] for name in ("logits", "loss")},
        **{f"weight.{name}": array for name, array in made["weights"].items()},
        **{f"gradient.{name}": array for name, array in made["gradients"].items()},
    }


if __name__ == "__main__":
    for name, make in (("llava", llava),):
        path = Path(__file__).with_name(f"{name}.safetensors")
        save_file({key: np.asarray(array, order="C") for key, array in make().items()}, path)
        path.chmod(0o644)
