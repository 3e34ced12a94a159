"""Write radio.safetensors: what RADIO and its projector in transformers make of some images and a video.

    python -m tests.golden.make_radio

"weight.*" and "gradient.*" have the names of a released checkpoint; gradients are of the sum of the sines of all
tokens. Needs the extra `parity`.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.harness.models.radio_cases import GOLDEN, images, video
from tests.harness.transformers.radio_reference import Reference

GRIDS = ((4, 6), (2, 2), (6, 10))


def main() -> None:
    model = Reference(GOLDEN)
    pictures, clip = images(GRIDS), video(4)
    of_images, of_video = model.packed(pictures), model.video(clip)
    torch.sin(torch.cat([*of_images, of_video])).sum().backward()
    tensors = {f"input.image.{i}": picture for i, picture in enumerate(pictures)} | {"input.video": clip}
    tensors |= {f"output.image.{i}": tokens.detach().numpy() for i, tokens in enumerate(of_images)}
    tensors["output.video"] = of_video.detach().numpy()
    tensors |= {f"weight.{name}": tensor for name, tensor in model.tensors().items()}
    tensors |= {f"gradient.{name}": tensor for name, tensor in model.tensors(lambda weight: weight.grad).items()}
    path = Path(__file__).with_name("radio.safetensors")
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    path.chmod(0o644)


if __name__ == "__main__":
    main()
