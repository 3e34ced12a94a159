"""Weights and config of SigLIP 2's vision tower: `siglip2` for images of any size, `siglip` for those of one size."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from hetjax.models.errors import ModelError
from hetjax.models.huggingface.config_json import check_keys
from hetjax.models.huggingface.entry import Entry, Slot, kernel, reshaped, same
from hetjax.models.huggingface.known_keys import check_known, key_names
from hetjax.models.huggingface.vision_block import vision_block_entries
from hetjax.models.json_values import Json, JsonObject
from hetjax.models.siglip2_config import Siglip2Config

PREFIX = "vision_model."
"""Of the tower's names beside a text tower, and in a checkpoint of its own before transformers 5; none after."""

READ = key_names(
    """
    hidden_act patch_size num_patches image_size num_channels hidden_size num_hidden_layers num_attention_heads
    intermediate_size layer_norm_eps attention_dropout vision_use_head
    """
)
"""Keys that are read, or that say how the pooling head, which is left out, is made."""


def siglip2_entries(
    config: Siglip2Config, *, prefix: str = PREFIX, projector: str = "multi_modal_projector."
) -> list[Entry]:
    """Return the tower's tensors, and those of a projector of two layers, where the config has one. No pooling head."""
    width, heads = (config.width,), (config.heads, config.width // config.heads)
    entries = [
        _patches(config, f"{prefix}embeddings.patch_embedding.weight"),
        same(f"{prefix}embeddings.patch_embedding.bias", "patch/bias"),
        same(f"{prefix}embeddings.position_embedding.weight", "positions"),
        same(f"{prefix}post_layernorm.weight", "norm/scale"),
        same(f"{prefix}post_layernorm.bias", "norm/bias"),
    ]
    for layer in range(config.layers):
        name, ours = f"{prefix}encoder.layers.{layer}.", "layers/block/"
        for theirs, which in (("q", "query"), ("k", "key"), ("v", "value")):
            path = f"{ours}attention/{which}"
            entries += [
                kernel(f"{name}self_attn.{theirs}_proj.weight", f"{path}/kernel", layer, ins=width, outs=heads),
                reshaped(f"{name}self_attn.{theirs}_proj.bias", f"{path}/bias", layer, theirs=width, ours=heads),
            ]
        entries += vision_block_entries(config, layer, name=name, output="self_attn.out_proj", norm="layer_norm")
    if config.projector_width is not None:
        between = (config.projector_width,)
        entries += [
            kernel(f"{projector}linear_1.weight", "projector/up/kernel", ins=width, outs=between),
            same(f"{projector}linear_1.bias", "projector/up/bias"),
            kernel(f"{projector}linear_2.weight", "projector/down/kernel", ins=between, outs=(config.output_width,)),
            same(f"{projector}linear_2.bias", "projector/down/bias"),
        ]
    return entries


def _patches(config: Siglip2Config, name: str) -> Entry:
    """A linear map of patches for images of any size, a convolution for those of one."""
    if config.image_size is None:
        return kernel(name, "patch/kernel", ins=(config.patch_dim,), outs=(config.width,))
    # [out, channel, row, column]
    window = (config.patch_size, config.patch_size, config.channels, config.width)
    return Entry(
        names=(name,),
        slots=(Slot(path="patch/kernel"),),
        read=lambda given: (given.transpose(2, 3, 1, 0).reshape(config.patch_dim, config.width),),
        write=lambda ours: (np.ascontiguousarray(ours.reshape(window).transpose(3, 2, 0, 1)),),
    )


def siglip2_config(
    hf: Mapping[str, Json], *, projector_width: int | None = None, output_width: int | None = None
) -> Siglip2Config:
    """Return the config that the config.json of a tower describes, or of a model with one as its `vision_config`.

    The projector's widths are those of the model around it. Raises ModelError for a tower with other parts.
    """
    if "vision_config" in hf:
        check_known(hf, ("vision_config", "text_config"))
        hf = hf["vision_config"]
    check_known(hf, READ)
    activation = hf.get("hidden_act", "gelu_pytorch_tanh")
    if activation != "gelu_pytorch_tanh":
        raise ModelError(f"SigLIP 2 config: hidden_act is {activation!r}; SigLIP 2 has 'gelu_pytorch_tanh'")
    check_keys(hf, {"attention_dropout": (0, None)})
    patch = hf.get("patch_size", 16)
    packed = "siglip2" in hf.get("model_type", "") or "num_patches" in hf
    image_size = None if packed else hf.get("image_size", 224)
    return Siglip2Config(
        type="siglip2",
        patch_size=patch,
        channels=hf.get("num_channels", 3),
        image_size=image_size,
        position_side=math.isqrt(hf.get("num_patches", 256)) if packed else image_size // patch,
        width=hf.get("hidden_size", 768),
        layers=hf.get("num_hidden_layers", 12),
        heads=hf.get("num_attention_heads", 12),
        mlp_width=hf.get("intermediate_size", 3072),
        norm_epsilon=hf.get("layer_norm_eps", 1e-6),
        projector_width=projector_width,
        output_width=output_width,
    )


def siglip2_hf_config(config: Siglip2Config) -> JsonObject:
    """Return the tower's config.json."""
    packed = config.image_size is None
    sizes = {"num_patches": config.position_side**2} if packed else {"image_size": config.image_size}
    return {
        "model_type": "siglip2_vision_model" if packed else "siglip_vision_model",
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_channels": config.channels,
        "patch_size": config.patch_size,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": config.norm_epsilon,
        "attention_dropout": 0.0,
        "vision_use_head": False,
        **sizes,
    }
