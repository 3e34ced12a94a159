"""SigLIP's vision towers as transformers has them, with random weights."""

import re

import torch
from transformers import Siglip2VisionConfig, Siglip2VisionModel, SiglipVisionConfig, SiglipVisionModel

from hetjax.models.huggingface.siglip2 import siglip2_hf_config


def reference(config):
    """The tower with random weights."""
    if config.image_size is None:
        kind, settings = Siglip2VisionModel, Siglip2VisionConfig
    else:
        kind, settings = SiglipVisionModel, SiglipVisionConfig
    torch.manual_seed(0)
    model = kind._from_config(settings(**siglip2_hf_config(config)), attn_implementation="sdpa")
    for name, weight in model.named_parameters():
        offset = 1.0 if re.search(r"norm\d?\.weight", name) else 0.0
        scale = 0.3 if weight.ndim < 2 or "position" in name else weight[0].numel() ** -0.5
        weight.data = offset + scale * torch.randn_like(weight)
    return model


def packed(model, config, pictures):
    """Features of each image, the images padded to the longest as transformers wants them."""
    dtype = next(model.parameters()).dtype
    grids = [tuple(side // config.patch_size for side in picture.shape[:2]) for picture in pictures]
    longest = max(height * width for height, width in grids)
    pixels, mask = (
        torch.zeros(len(pictures), longest, config.patch_dim, dtype=dtype),
        torch.zeros(len(pictures), longest),
    )
    for i, picture in enumerate(pictures):
        height, width = grids[i]
        cut = picture.reshape(height, config.patch_size, width, config.patch_size, -1).swapaxes(1, 2)
        pixels[i, : height * width] = torch.from_numpy(cut.reshape(height * width, -1).copy())
        mask[i, : height * width] = 1
    hidden = model(pixels, mask, torch.tensor(grids)).last_hidden_state
    return torch.cat([hidden[i, : height * width] for i, (height, width) in enumerate(grids)])
