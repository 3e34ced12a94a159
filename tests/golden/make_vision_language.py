"""Golden tensors of tiny vision-language models, as transformers computes them.

    python -m tests.golden.make_vision_language

Writes llava.safetensors, qwen3_vl.safetensors and qwen3_vl_moe.safetensors in float32: "weight.*" and "gradient.*" have
the names of a checkpoint; gradients are of "output.loss". Needs the extra `parity`.
"""

from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.harness.huggingface import llava_model, qwen3_vl_model
from tests.harness.transformers.vision_language import build, run


def llava() -> dict[str, np.ndarray]:
    """What the file of LLaVA holds, by name."""
    given = llava_model.given()
    images = np.ascontiguousarray(np.moveaxis(given["images"], -1, 1))
    made = run(build(llava_model.CONFIG), given["labels"], input_ids=given["tokens"], pixel_values=images)
    return held(given, made)


def qwen3_vl(name: str) -> dict[str, np.ndarray]:
    """What the file of a Qwen3-VL holds, by name."""
    given = qwen3_vl_model.given()
    made = run(build(qwen3_vl_model.CONFIGS[name]), given["labels"], **qwen3_vl_model.their_inputs(given))
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
    makers = {"llava": llava, **{name: partial(qwen3_vl, name) for name in qwen3_vl_model.CONFIGS}}
    for name, make in makers.items():
        path = Path(__file__).with_name(f"{name}.safetensors")
        save_file({key: np.asarray(array, order="C") for key, array in make().items()}, path)
        path.chmod(0o644)
