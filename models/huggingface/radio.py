"""RADIO's weights and config, as NVIDIA releases them, alone or inside an omni-modal checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from hetjax.models.errors import ModelError
from hetjax.models.huggingface.entry import Entry, Slot, Tensors, kernel, reshaped, same
from hetjax.models.huggingface.known_keys import check_known, key_names
from hetjax.models.huggingface.vision_block import vision_block_entries
from hetjax.models.json_values import Json, JsonObject
from hetjax.models.radio_config import RadioConfig

PREFIX = "vision_model."
"""Of the encoder's names inside an omni-modal checkpoint; a checkpoint of RADIO alone has none."""

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Those of CLIP's pixels, which RADIO was trained with."""

IGNORED = r"(?:^|\.)radio_model\.model\.blocks\.\d+\.layer_scale[12]\.lambda1$"
"""Names of tensors that transformers writes and that say nothing: they are ones."""

_SIZES = {  # (width, layers, heads, mlp_width) of the backbones that a released config names
    "vit_base_patch16_224": (768, 12, 12, 3072),
    "vit_large_patch16_224": (1024, 24, 16, 4096),
    "vit_huge_patch16_224": (1280, 32, 16, 5120),
}

READ = key_names(
    """
    hidden_size patch_size num_channels num_hidden_layers num_attention_heads mlp_ratio max_img_size num_cls_tokens
    num_registers video_temporal_patch_size layer_norm_eps image_size norm_mean norm_std summary_idxs patch_dim
    video_patch_dim attention_probs_dropout_prob hidden_dropout_prob drop_path_rate
    """
)
"""Keys that are read, that follow from others, of the front end, and of what is dropped in training: nothing here."""

_TEACHERS = ("clip", "siglip", "dino_v2", "sam")  # each with a class token


def radio_entries(config: RadioConfig, *, prefix: str = PREFIX, projector: str = "mlp1.") -> list[Entry]:
    """Return the encoder's tensors, and those of the projector under its own prefix, where there is one.

    transformers saves by the same names, and `layer_scale` besides; see IGNORED.
    """
    body, width = f"{prefix}radio_model.model.", config.width
    embedder = f"{body}patch_generator."
    entries = [
        kernel(f"{embedder}embedder.weight", "patch/kernel", ins=(config.patch_dim,), outs=(width,)),
        reshaped(
            f"{embedder}pos_embed",
            "positions",
            theirs=(1, config.position_side**2, width),
            ours=(config.position_side**2, width),
        ),
        same(f"{embedder}cls_token.token", "prefix"),
    ]
    if config.tubelet is not None:
        ins = (config.video_patch_dim,)
        entries.append(kernel(f"{embedder}video_embedder.weight", "video_patch/kernel", ins=ins, outs=(width,)))
    for layer in range(config.layers):
        entries += _block(config, f"{body}blocks.{layer}.", layer)
    if config.projector_width is not None:
        hidden, merged = (config.projector_width,), (config.rows_per_token * width,)
        entries += [
            same(f"{projector}0.weight", "projector/norm/scale"),
            kernel(f"{projector}1.weight", "projector/mlp/up/kernel", ins=merged, outs=hidden),
            kernel(f"{projector}3.weight", "projector/mlp/down/kernel", ins=hidden, outs=(config.output_width,)),
        ]
    return entries


def _block(config: RadioConfig, name: str, layer: int) -> list[Entry]:
    heads = (config.heads, config.width // config.heads)
    entries = [_qkv(f"{name}attn.qkv.{part}", part, layer, heads, config.width) for part in ("weight", "bias")]
    return entries + vision_block_entries(config, layer, name=name, output="attn.proj", norm="norm")


def _qkv(name: str, part: str, layer: int, heads: tuple[int, int], width: int) -> Entry:
    """Queries, keys and values, one below the other in their tensor."""
    leaf, ours = ("kernel", (width, *heads)) if part == "weight" else ("bias", heads)
    return Entry(
        names=(name,),
        slots=tuple(
            Slot(path=f"layers/block/attention/{which}/{leaf}", index=(layer,)) for which in ("query", "key", "value")
        ),
        read=functools.partial(_split, ours=ours),
        write=_joined,
    )


def _split(fused: np.ndarray, *, ours: tuple[int, ...]) -> Tensors:
    return tuple(part.T.reshape(ours) for part in np.split(fused, 3))


def _joined(*ours: np.ndarray) -> Tensors:
    parts = [part.reshape(part.shape[0], -1).T if part.ndim == 3 else part.reshape(-1) for part in ours]
    return (np.concatenate(parts),)


def radio_constants(
    *,
    prefix: str = PREFIX,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    summaries: Sequence[int] = (0, 1),
) -> dict[str, np.ndarray]:
    """Return tensors of a checkpoint that are no weights of ours: pixel statistics, and numbers of summary tokens.

    What is read from a checkpoint is written back as it was; without one, these are written.
    """
    body = f"{prefix}radio_model."
    return {
        f"{body}input_conditioner.norm_mean": np.asarray(mean, np.float32).reshape(-1, 1, 1),
        f"{body}input_conditioner.norm_std": np.asarray(std, np.float32).reshape(-1, 1, 1),
        f"{body}summary_idxs": np.asarray(summaries, np.int64),
    }


def radio_config(hf: Mapping[str, Json]) -> RadioConfig:
    """Return the config that a config.json describes, of an omni-modal model in either naming or of RADIO alone.

    RADIO alone has no projector. Raises ModelError for a backbone that is not known by name or has other parts.
    """
    if "vision_config" not in hf:
        return RadioConfig(type="radio", **_tower(hf))
    language = hf.get("text_config") or hf.get("llm_config") or {}
    tower = _tower(hf["vision_config"], hf.get("video_temporal_patch_size", 2))
    return RadioConfig(
        type="radio",
        **tower,
        merge=round(1 / hf.get("downsample_ratio", 0.5)),
        projector_width=hf["projector_hidden_size"],
        output_width=language["hidden_size"],
        video_pruning_rate=(hf.get("video_pruning_rate") or 0.0) if tower["tubelet"] else 0.0,
    )


def _tower(hf: Mapping[str, Json], frames: int | None = None) -> JsonObject:
    """Sizes of the tower; `frames` is what the model around it says of how many a patch of a video spans."""
    args = hf.get("args")
    if args is None:
        built = {"use_swiglu_ffn": False, "qkv_bias": True, "hidden_act": "gelu", "layerscale_value": 1.0}
        _refuse(hf, built)
        check_known(hf, built, READ)
        width, patch = hf.get("hidden_size", 1280), hf.get("patch_size", 16)
        return dict(
            patch_size=patch,
            channels=hf.get("num_channels", 3),
            width=width,
            layers=hf.get("num_hidden_layers", 32),
            heads=hf.get("num_attention_heads", 16),
            mlp_width=int(width * hf.get("mlp_ratio", 4.0)),
            position_side=hf.get("max_img_size", 2048) // patch,
            prefix_tokens=hf.get("num_cls_tokens", 3) + hf.get("num_registers", 7),
            tubelet=hf.get("video_temporal_patch_size", frames),
            norm_epsilon=hf.get("layer_norm_eps", 1e-6),
        )
    _refuse(hf, {"feature_normalizer_config": None, "vitdet_window_size": None})
    if args.get("model") not in _SIZES:
        raise ModelError(f"RADIO config: backbone {args.get('model')!r} is not known; known are {', '.join(_SIZES)}")
    width, layers, heads, hidden = _SIZES[args["model"]]
    patch = hf.get("patch_size", 16)
    classes = len(args.get("teachers") or ()) or 1
    multiple = args.get("register_multiple") or classes
    return dict(
        patch_size=patch,
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=hidden,
        position_side=args.get("cpe_max_size", 2048) // patch,
        # Class tokens are filled up with registers to a multiple.
        prefix_tokens=-(-classes // multiple) * multiple,
        tubelet=frames if args.get("separate_video_embedder", frames is not None) else None,
    )


def _refuse(hf: Mapping[str, Json], wanted: Mapping[str, Json]) -> None:
    other = {key: hf[key] for key, value in wanted.items() if hf.get(key, value) != value}
    if other:
        raise ModelError(f"RADIO config: {other} is not C-RADIO; its values are {dict(wanted)}")


def radio_hf_config(config: RadioConfig) -> JsonObject:
    """Return RADIO's own config.json, as transformers has it: `vision_config` in that of an omni-modal model."""
    classes = min(4, config.prefix_tokens)
    return {
        "model_type": "radio",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "mlp_ratio": config.mlp_width / config.width,
        "hidden_act": "gelu",
        "layer_norm_eps": config.norm_epsilon,
        "qkv_bias": True,
        "use_swiglu_ffn": False,
        "layerscale_value": 1.0,
        "num_channels": config.channels,
        "patch_size": config.patch_size,
        "max_img_size": config.position_side * config.patch_size,
        "num_cls_tokens": classes,
        "num_registers": config.prefix_tokens - classes,
        "video_temporal_patch_size": config.tubelet,
        "norm_mean": list(MEAN),
        "norm_std": list(STD),
    }


def radio_omni_config(config: RadioConfig, *, released: bool = False) -> JsonObject:
    """Return the keys for vision of an omni-modal config.json, beside the width of its language model.

    In the words of transformers, or as `released`. Raises ModelError for a size that no released config can name.
    """
    shared = {
        "patch_size": config.patch_size,
        "downsample_ratio": 1 / config.merge,
        "projector_hidden_size": config.projector_width,
        "video_temporal_patch_size": config.tubelet,
        "video_pruning_rate": config.video_pruning_rate,
        "norm_mean": list(MEAN),
        "norm_std": list(STD),
    }
    if released:
        return {**shared, "ps_version": "v2", "vit_hidden_size": config.width, "vision_config": _released(config)}
    return {**shared, "vision_hidden_size": config.width, "vision_config": radio_hf_config(config)}


def _released(config: RadioConfig) -> JsonObject:
    sizes = (config.width, config.layers, config.heads, config.mlp_width)
    name = next((name for name, known in _SIZES.items() if known == sizes), None)
    if name is None or config.prefix_tokens < len(_TEACHERS):
        raise ModelError(
            f"RADIO config: no backbone of a released config has width, layers, heads and mlp_width = {sizes} with "
            f"{config.prefix_tokens} prefix tokens; write it in the words of transformers"
        )
    return {
        "patch_size": config.patch_size,
        "version": "c-radio_v4-h",
        "args": {
            "model": name,
            "cpe_max_size": config.position_side * config.patch_size,
            "register_multiple": config.prefix_tokens,
            "teachers": [{"name": teacher} for teacher in _TEACHERS],
            "separate_video_embedder": config.tubelet is not None,
        },
    }
