"""Write siglip2.safetensors: what SigLIP 2's vision tower in transformers makes of images of several sizes.

    python -m tests.golden.make_siglip2

"weight.*" and "gradient.*" have the names of a checkpoint; gradients are of the sum of the sines of all features.
Needs the extra `parity`.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.harness.models.radio_cases import images
from tests.harness.models.siglip2_cases import GOLDEN
from tests.harness.transformers.siglip2_reference import packed, reference

GRIDS = ((2, 3), (6, 3), (1, 9))


def main() -> None:
    model, pictures = reference(GOLDEN), images(GRIDS)
    features = packed(model, GOLDEN, pictures)
    torch.sin(features).sum().backward()
    tensors = {f"input.{i}": picture for i, picture in enumerate(pictures)} | {"output": features.detach().numpy()}
    for name, weight in model.named_parameters():
        tensors |= {f"weight.{name}": weight.detach().numpy(), f"gradient.{name}": weight.grad.numpy()}
    path = Path(__file__).with_name("siglip2.safetensors")
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    path.chmod(0o644)


if __name__ == "__main__":
    main()
