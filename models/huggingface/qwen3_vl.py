"""Qwen3-VL's checkpoints: vision tower and language model, dense ("qwen3_vl") or with experts ("qwen3_vl_moe").

The kernels of all experts are one tensor: released checkpoints have [experts, in, out], those that transformers made
itself [experts, out, in]. These are two families, told apart by the shapes in the files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from hetjax.models.errors import ModelError
from hetjax.models.huggingface.config_json import check_keys, required_keys
from hetjax.models.huggingface.decoder import decoder_entries
from hetjax.models.huggingface.entry import Entry, Slot, kernel, same
from hetjax.models.huggingface.family import Configs
from hetjax.models.huggingface.known_keys import check_known, key_names
from hetjax.models.huggingface.qwen3 import qwen3_config, qwen3_hf_config
from hetjax.models.huggingface.vision_block import vision_block_entries
from hetjax.models.json_values import Json, JsonObject
from hetjax.models.qwen3_vision_config import Qwen3VisionConfig
from hetjax.models.qwen3_vl_config import Qwen3VlConfig

LANGUAGE, TOWER = "model.language_model.", "model.visual."
HEAD = "lm_head.weight"
MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")
TOKENS = {"image_token_id": 18, "video_token_id": 18, "vision_start_token_id": 21, "vision_end_token_id": 22}
"""Ids of tokens in a prompt, of the built-in tokenizer, in which videos have the placeholders of images."""

_READ = ("text_config", "vision_config", *TOKENS, "tie_word_embeddings")
_VISION = key_names(
    """
    depth hidden_size hidden_act intermediate_size num_heads in_channels patch_size spatial_merge_size
    temporal_patch_size out_hidden_size num_position_embeddings deepstack_visual_indexes rope_parameters
    """
)
_MROPE = ("mrope_section", "mrope_interleaved")


def qwen3_vl_configs(hf: Mapping[str, Json]) -> Configs:
    """Return the config of each module that a config.json describes. Raises ModelError for what is not built."""
    check_known(hf, _READ)
    found = required_keys(hf, text="text_config", vision="vision_config")
    vision = _vision_config(found["vision"])
    tied = hf.get("tie_word_embeddings", False)
    llm = _text_config({**found["text"], "tie_word_embeddings": tied}, len(vision.deepstack))
    if vision.output_width != llm.width:
        raise ModelError(
            f"config.json of qwen3_vl: out_hidden_size = {vision.output_width} of vision_config must be hidden_size = "
            f"{llm.width} of text_config"
        )
    return {"vision": vision, "llm": llm}


def _vision_config(hf: Mapping[str, Json]) -> Qwen3VisionConfig:
    check_known(hf, _VISION)
    check_keys(hf, {"hidden_act": ("gelu_pytorch_tanh",)})
    rope = hf.get("rope_parameters") or {}
    check_keys(rope, {"rope_type": ("axial", "default")})
    return Qwen3VisionConfig(
        type="qwen3_vl",
        patch_size=hf.get("patch_size", 16),
        channels=hf.get("in_channels", 3),
        tubelet=hf.get("temporal_patch_size", 2),
        width=hf.get("hidden_size", 1152),
        layers=hf.get("depth", 27),
        heads=hf.get("num_heads", 16),
        mlp_width=hf.get("intermediate_size", 4304),
        position_side=math.isqrt(hf.get("num_position_embeddings", 2304)),
        merge=hf.get("spatial_merge_size", 2),
        deepstack=tuple(hf.get("deepstack_visual_indexes", (8, 16, 24))),
        output_width=hf.get("out_hidden_size", 3584),
        rope_theta=float(rope.get("rope_theta", 10000.0)),
    )


def _text_config(hf: Mapping[str, Json], deepstack: int) -> Qwen3VlConfig:
    """That of a Qwen3, but for the rotations."""
    ropes = {key: dict(hf[key]) for key in ("rope_scaling", "rope_parameters") if hf.get(key)}
    said = {key: value for rope in ropes.values() for key, value in rope.items()}
    check_keys({**said, "model_type": hf.get("model_type")}, {"mrope_interleaved": (True, None)})
    plain = {name: {key: value for key, value in rope.items() if key not in _MROPE} for name, rope in ropes.items()}
    kind = "qwen3_moe" if "num_experts_per_tok" in hf else "qwen3"
    theta = {} if "rope_theta" in said or "rope_theta" in hf else {"rope_theta": 500000.0}
    experts = {"norm_topk_prob": True} if kind == "qwen3_moe" else {}
    sizes = qwen3_config({**theta, **experts, **hf, **plain, "model_type": kind})
    return Qwen3VlConfig(
        **{field.name: getattr(sizes, field.name) for field in dataclasses.fields(sizes)},
        rope_sections=tuple(said.get("mrope_section", (24, 20, 20))),
        deepstack=deepstack,
    )


def qwen3_vl_hf_config(configs: Configs) -> JsonObject:
    """Return the config.json of these modules. Raises ModelError for modules that it cannot hold."""
    vision, llm = _checked(configs)
    kind = MODEL_TYPES[llm.experts is not None]
    names = {field.name for field in dataclasses.fields(Qwen3VlConfig)} - {"rope_sections", "deepstack"}
    plain = Qwen3VlConfig.__bases__[0](**{name: getattr(llm, name) for name in names})
    dropped = ("architectures", "rope_scaling", "rope_theta", "use_sliding_window")
    text = {key: value for key, value in qwen3_hf_config(plain).items() if key not in dropped}
    rope = {"rope_type": "default", "rope_theta": llm.rope_theta, "mrope_interleaved": True}
    moe = llm.experts is not None
    return {
        "architectures": [f"Qwen3VL{'Moe' if moe else ''}ForConditionalGeneration"],
        "model_type": kind,
        "text_config": {
            **text,
            "model_type": f"{kind}_text",
            "rope_parameters": {**rope, "mrope_section": list(llm.rope_sections)},
        },
        "vision_config": {
            "model_type": f"{kind}_vision",
            "depth": vision.layers,
            "hidden_size": vision.width,
            "hidden_act": "gelu_pytorch_tanh",
            "intermediate_size": vision.mlp_width,
            "num_heads": vision.heads,
            "in_channels": vision.channels,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.merge,
            "temporal_patch_size": vision.tubelet,
            "out_hidden_size": vision.output_width,
            "num_position_embeddings": vision.position_side**2,
            "deepstack_visual_indexes": list(vision.deepstack),
        },
        "tie_word_embeddings": llm.tie_embeddings,
        **TOKENS,
    }


def qwen3_vl_entries(configs: Configs, *, released: bool = True) -> dict[str, list[Entry]]:
    """Return the tensors of each module; kernels of experts as `released`, or as transformers makes them."""
    vision, llm = _checked(configs)
    return {"vision": _tower_entries(vision), "llm": _language_entries(llm, released)}


def _language_entries(llm: Qwen3VlConfig, released: bool) -> list[Entry]:
    named = [
        dataclasses.replace(entry, names=tuple(map(_inside, entry.names)))
        for entry in decoder_entries(llm)
        if not any(".experts." in name for name in entry.names)
    ]
    if llm.experts is None:
        return named
    # Theirs and ours have the order [expert, in, out] in a release.
    turned = (lambda kernels: kernels) if released else (lambda kernels: kernels.swapaxes(1, 2))
    ours = "layers/block/mlp/"
    for layer in range(llm.layers):
        experts = f"{LANGUAGE}layers.{layer}.mlp.experts."
        named += [
            Entry(
                names=(f"{experts}gate_up_proj",),
                slots=(Slot(path=f"{ours}gate", index=(layer,)), Slot(path=f"{ours}up", index=(layer,))),
                read=lambda given: tuple(np.split(turned(given), 2, axis=2)),
                write=lambda gate, up: (turned(np.concatenate([gate, up], axis=2)),),
            ),
            Entry(
                names=(f"{experts}down_proj",),
                slots=(Slot(path=f"{ours}down", index=(layer,)),),
                read=lambda given: (turned(given),),
                write=lambda down: (turned(down),),
            ),
        ]
    return named


def are_of_transformers(tensors: Mapping[str, np.ndarray]) -> bool:
    """Return whether kernels of experts have the shapes that transformers gives them, not those of a release."""
    experts = f"{LANGUAGE}layers.0.mlp.experts."
    if f"{experts}down_proj" not in tensors:
        return False
    into, out = tensors[f"{experts}gate_up_proj"].shape, tensors[f"{experts}down_proj"].shape
    return into[1] == 2 * out[2] and into[2] == out[1] and not (into[1] == out[2] and into[2] == 2 * out[1])


def _tower_entries(config: Qwen3VisionConfig) -> list[Entry]:
    width, heads = config.width, (config.heads, config.width // config.heads)
    # [out, channel, frame, row, column]
    window = (config.tubelet, config.channels, config.patch_size, config.patch_size, width)
    entries = [
        Entry(
            names=(f"{TOWER}patch_embed.proj.weight",),
            slots=(Slot(path="patch/kernel"),),
            read=lambda given: (given.transpose(2, 1, 3, 4, 0).reshape(-1, width),),
            write=lambda ours: (np.ascontiguousarray(ours.reshape(window).transpose(4, 1, 0, 2, 3)),),
        ),
        same(f"{TOWER}patch_embed.proj.bias", "patch/bias"),
        same(f"{TOWER}pos_embed.weight", "positions"),
        *_merger_entries(config, f"{TOWER}merger.", "merger"),
    ]
    for depth, port in enumerate(config.deepstack_ports):
        entries += _merger_entries(config, f"{TOWER}deepstack_merger_list.{depth}.", port)
    for layer in range(config.layers):
        name, ours = f"{TOWER}blocks.{layer}.", "layers/block/attention/"
        kernels, biases = (
            tuple(Slot(path=f"{ours}{which}/{kind}", index=(layer,)) for which in ("query", "key", "value"))
            for kind in ("kernel", "bias")
        )
        entries += [
            Entry(
                names=(f"{name}attn.qkv.weight",),
                slots=kernels,
                read=lambda given: tuple(part.T.reshape(width, *heads) for part in np.split(given, 3)),
                write=lambda *parts: (np.concatenate([part.reshape(width, width).T for part in parts]),),
            ),
            Entry(
                names=(f"{name}attn.qkv.bias",),
                slots=biases,
                read=lambda given: tuple(part.reshape(heads) for part in np.split(given, 3)),
                write=lambda *parts: (np.concatenate([part.reshape(-1) for part in parts]),),
            ),
        ]
        of_block = vision_block_entries(config, layer, name=name, output="attn.proj", norm="norm")
        entries += [dataclasses.replace(entry, names=tuple(map(_of_mlp, entry.names))) for entry in of_block]
    return entries


def _merger_entries(config: Qwen3VisionConfig, theirs: str, ours: str) -> list[Entry]:
    merged = (config.rows_per_token * config.width,)
    return [
        same(f"{theirs}norm.weight", f"{ours}/norm/scale"),
        same(f"{theirs}norm.bias", f"{ours}/norm/bias"),
        kernel(f"{theirs}linear_fc1.weight", f"{ours}/mlp/up/kernel", ins=merged, outs=merged),
        same(f"{theirs}linear_fc1.bias", f"{ours}/mlp/up/bias"),
        kernel(f"{theirs}linear_fc2.weight", f"{ours}/mlp/down/kernel", ins=merged, outs=(config.output_width,)),
        same(f"{theirs}linear_fc2.bias", f"{ours}/mlp/down/bias"),
    ]


def _of_mlp(name: str) -> str:
    return name.replace(".mlp.fc", ".mlp.linear_fc")


def _inside(name: str) -> str:
    """The name of a language model's tensor in the model around it."""
    return name if name == HEAD else LANGUAGE + name.removeprefix("model.")


def _checked(configs: Configs) -> tuple[Qwen3VisionConfig, Qwen3VlConfig]:
    vision, llm = configs["vision"], configs["llm"]
    if not isinstance(vision, Qwen3VisionConfig) or not isinstance(llm, Qwen3VlConfig):
        raise ModelError(
            f"Qwen3-VL consists of a Qwen3VisionConfig and a Qwen3VlConfig, not of a {type(vision).__name__} and a "
            f"{type(llm).__name__}"
        )
    if len(vision.deepstack) != llm.deepstack or vision.norm_epsilon != 1e-6:
        raise ModelError(
            f"Qwen3-VL has as many depths in both modules, but vision.deepstack = {vision.deepstack} and llm.deepstack "
            f"= {llm.deepstack}; its vision tower's norm_epsilon is 1e-6, here {vision.norm_epsilon}"
        )
    return vision, llm
