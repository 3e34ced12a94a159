"""Weights and config of CLIP's vision tower, of which LLaVA takes the patch features of an inner layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hetjax.models.clip_config import ClipConfig
from hetjax.models.errors import ModelError
from hetjax.models.huggingface.config_json import check_keys
from hetjax.models.huggingface.entry import Entry, Slot, kernel, reshaped, same
from hetjax.models.huggingface.known_keys import check_known, key_names
from hetjax.models.huggingface.vision_block import vision_block_entries
from hetjax.models.json_values import Json, JsonObject

READ = key_names(
    """
    hidden_act patch_size image_size num_channels hidden_size num_hidden_layers num_attention_heads intermediate_size
    layer_norm_eps attention_dropout dropout projection_dim vocab_size
    """
)
"""Keys that are read; the last two are of what stands beside the tower in CLIP."""


def clip_entries(config: ClipConfig, *, prefix: str) -> list[Entry]:
    """Return the tensors of the layers that are computed and of what is before them; `prefix` leads their names."""
    width, heads = (config.width,), (config.heads, config.width // config.heads)
    # [out, channel, row, column]
    window = (config.patch_size, config.patch_size, config.channels, config.width)
    entries = [
        same(f"{prefix}embeddings.class_embedding", "class_token"),
        same(f"{prefix}embeddings.position_embedding.weight", "positions"),
        same(f"{prefix}pre_layrnorm.weight", "entry_norm/scale"),
        same(f"{prefix}pre_layrnorm.bias", "entry_norm/bias"),
        Entry(
            names=(f"{prefix}embeddings.patch_embedding.weight",),
            slots=(Slot(path="patch/kernel"),),
            read=lambda given: (given.transpose(2, 3, 1, 0).reshape(config.patch_dim, config.width),),
            write=lambda ours: (np.ascontiguousarray(ours.reshape(window).transpose(3, 2, 0, 1)),),
        ),
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
    return entries


def clip_config(hf: Mapping[str, Json], feature_layer: int, *, output_width: int) -> ClipConfig:
    """Return the config of a tower whose features of `feature_layer` are taken, and projected to `output_width`.

    The layer counts as in transformers: 0 is what enters the first, -1 what the last makes. Raises ModelError for a
    tower with other parts, and where there is no such layer or nothing would be computed.
    """
    check_known(hf, READ)
    check_keys(hf, {"hidden_act": ("quick_gelu",), "attention_dropout": (0, None), "dropout": (0, None)})
    depth = hf.get("num_hidden_layers", 12)
    layers = feature_layer if feature_layer >= 0 else depth + 1 + feature_layer
    if not 0 < layers <= depth:
        raise ModelError(
            f"CLIP config: vision_feature_layer = {feature_layer} of {depth} layers is not supported; it must be from "
            f"1 to {depth}, or from -{depth} to -1"
        )
    return ClipConfig(
        type="clip",
        image_size=hf.get("image_size", 224),
        patch_size=hf.get("patch_size", 32),
        channels=hf.get("num_channels", 3),
        width=hf.get("hidden_size", 768),
        layers=layers,
        heads=hf.get("num_attention_heads", 12),
        mlp_width=hf.get("intermediate_size", 3072),
        norm_epsilon=hf.get("layer_norm_eps", 1e-5),
        projector_width=output_width,
        output_width=output_width,
    )


def clip_hf_config(config: ClipConfig) -> JsonObject:
    """Return the tower's config.json; the layers are those that are computed."""
    return {
        "model_type": "clip_vision_model",
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_channels": config.channels,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": config.norm_epsilon,
        "attention_dropout": 0.0,
    }
