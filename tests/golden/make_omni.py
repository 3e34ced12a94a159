"""Write omni.safetensors: what the tiny omni model in transformers makes of text, an image, a video and a clip.

    python -m tests.golden.make_omni

"weight.*" and "gradient.*" have the names of a released checkpoint; gradients are of "output.loss". The prompt is that
of `tests.harness.huggingface.omni_cases.WHOLE`. Needs the extra `parity`.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.harness.huggingface.omni_cases import BUFFERS, WHOLE, hf_config, make_inputs
from tests.harness.transformers.omni_reference import build, run, tensors


def main() -> None:
    model, given = build(hf_config()), make_inputs(WHOLE)
    made = run(model, WHOLE, given)
    held = {f"input.image.{i}": image for i, image in enumerate(given["images"])}
    held |= {f"input.clip.{i}": clip for i, clip in enumerate(given["clips"])}
    held |= {f"input.{name}": given[name] for name in ("video", "tokens", "labels")}
    held |= {f"output.{name}": made[name] for name in ("logits", "loss")}
    held |= {f"weight.{name}": tensor for name, tensor in tensors(model).items()}
    held |= {
        f"gradient.{name}": each
        for name, each in made["gradients"].items()
        if each.any() and not name.endswith(BUFFERS)
    }
    path = Path(__file__).with_name("omni.safetensors")
    save_file({name: np.asarray(tensor, order="C") for name, tensor in held.items()}, path)
    path.chmod(0o644)


if __name__ == "__main__":
    main()
