"""What the checkpoints of Llama and its like have in common: names of tensors, and keys of config.json."""

from __future__ import annotations

from collections.abc import Mapping

from hetjax.models.decoder_config import DecoderConfig
from hetjax.models.errors import ModelError
from hetjax.models.huggingface.config_json import check_keys, required_keys
from hetjax.models.huggingface.entry import Entry, kernel, same
from hetjax.models.huggingface.known_keys import key_names
from hetjax.models.json_values import Json, JsonObject
from hetjax.models.parts.rope import RopeScaling

BLOCK = "layers/block"
ROPE_SCALING_KEYS = {
    "factor": "factor",
    "low_freq_factor": "low_turns",
    "high_freq_factor": "high_turns",
    "original_max_position_embeddings": "original_length",
}
"""Keys of Llama 3's scaling in config.json, and our names."""
PARTIAL = "partial_rotary_factor"
READ = key_names(
    f"""
    vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size
    hidden_act attention_bias attention_dropout rms_norm_eps tie_word_embeddings layer_types
    rope_theta rope_scaling rope_parameters {PARTIAL}
    """
)
"""Keys of config.json that are read here, or by the families that call this."""
_ROPE_KEYS = {*ROPE_SCALING_KEYS, "rope_theta", "rope_type", "type", PARTIAL}


def decoder_entries(config: DecoderConfig, *, prefix: str = "") -> list[Entry]:
    """Return all tensors of a decoder; `prefix` leads their names, e.g. "language_model."."""
    width, model = config.width, f"{prefix}model."
    entries = [same(f"{model}embed_tokens.weight", "embedding"), same(f"{model}norm.weight", "norm/scale")]
    if not config.tie_embeddings:
        entries.append(kernel(f"{prefix}lm_head.weight", "head/kernel", ins=(width,), outs=(config.vocab_size,)))
    for i in range(config.layers):
        layer = f"{model}layers.{i}."
        entries += [
            same(f"{layer}input_layernorm.weight", f"{BLOCK}/attention_norm/scale", i),
            same(f"{layer}post_attention_layernorm.weight", f"{BLOCK}/mlp_norm/scale", i),
            *_attention_entries(config, f"{layer}self_attn.", i),
            *_mlp_entries(config, f"{layer}mlp.", i),
        ]
    return entries


def _attention_entries(config: DecoderConfig, theirs: str, i: int) -> list[Entry]:
    ours, width = f"{BLOCK}/attention", (config.width,)
    heads, kv_heads = (config.heads, config.head_dim), (config.kv_heads, config.head_dim)
    entries = [
        kernel(f"{theirs}q_proj.weight", f"{ours}/query/kernel", i, ins=width, outs=heads),
        kernel(f"{theirs}k_proj.weight", f"{ours}/key/kernel", i, ins=width, outs=kv_heads),
        kernel(f"{theirs}v_proj.weight", f"{ours}/value/kernel", i, ins=width, outs=kv_heads),
        kernel(f"{theirs}o_proj.weight", f"{ours}/output/kernel", i, ins=heads, outs=width),
    ]
    if config.query_key_norm:
        entries.append(same(f"{theirs}q_norm.weight", f"{ours}/query_norm/scale", i))
        entries.append(same(f"{theirs}k_norm.weight", f"{ours}/key_norm/scale", i))
    return entries


def _mlp_entries(config: DecoderConfig, theirs: str, i: int) -> list[Entry]:
    ours, width, hidden = f"{BLOCK}/mlp", (config.width,), (config.mlp_width,)
    maps = (
        ("gate_proj", "gate", width, hidden),
        ("up_proj", "up", width, hidden),
        ("down_proj", "down", hidden, width),
    )
    if config.experts is None:
        return [
            kernel(f"{theirs}{name}.weight", f"{ours}/{path}/kernel", i, ins=ins, outs=outs)
            for name, path, ins, outs in maps
        ]
    router = kernel(f"{theirs}gate.weight", f"{ours}/router/kernel", i, ins=width, outs=(config.experts.count,))
    return [router] + [
        kernel(f"{theirs}experts.{e}.{name}.weight", f"{ours}/{path}", i, e, ins=ins, outs=outs)
        for e in range(config.experts.count)
        for name, path, ins, outs in maps
    ]


# ── config.json ──────────────────────────────────────────────────────────────────────────────────────


def shared_sizes(hf: Mapping[str, Json]) -> JsonObject:
    """Return the fields of a DecoderConfig that all these models name alike; a key that lacks raises ModelError."""
    built = {"hidden_act": ("silu",), "attention_bias": (False, None), "attention_dropout": (0, None)}
    check_keys(hf, built)
    if other := sorted(set(hf.get("layer_types") or ()) - {"full_attention"}):
        raise ModelError(f"config.json of {hf.get('model_type')}: layers of {', '.join(other)} are not supported")
    names = {
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp_width": "intermediate_size",
    }
    sizes = required_keys(hf, **names)
    theta, scaling = _rope(hf)
    kv_heads = hf.get("num_key_value_heads")
    return {
        **sizes,
        "kv_heads": sizes["heads"] if kv_heads is None else kv_heads,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_epsilon": hf.get("rms_norm_eps", 1e-6),
        "tie_embeddings": hf.get("tie_word_embeddings", False),
    }


def shared_keys(config: DecoderConfig) -> JsonObject:
    """Return the keys of config.json that all these models have, as their releases write them."""
    scaling = config.rope_scaling
    theirs = {} if scaling is None else {key: getattr(scaling, ours) for key, ours in ROPE_SCALING_KEYS.items()}
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else {"rope_type": "llama3", **theirs},
        "tie_word_embeddings": config.tie_embeddings,
    }


def _rope(hf: Mapping[str, Json]) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from `rope_theta` and `rope_scaling` or from transformers 5's `rope_parameters`."""
    given = {**(hf.get("rope_scaling") or {}), **_of_layers(hf, hf.get("rope_parameters") or {})}
    theta = float(given.get("rope_theta") or hf.get("rope_theta") or 10000.0)
    kind = given.get("rope_type", given.get("type", "default"))
    partial = given.get(PARTIAL, hf.get(PARTIAL, 1))
    check_keys({**hf, "rope_type": kind, PARTIAL: partial}, {"rope_type": ("default", "llama3"), PARTIAL: (1, None)})
    if unknown := sorted(given.keys() - _ROPE_KEYS):
        raise ModelError(
            f"config.json of {hf.get('model_type')}: its rope parameters hold {', '.join(unknown)}, which is not known "
            "here and may change the model's numbers"
        )
    if kind == "default":
        return theta, None
    lacking = [key for key in ROPE_SCALING_KEYS if key not in given]
    if lacking:
        raise ModelError(f"config.json of {hf.get('model_type')}: its llama3 rope scaling lacks {', '.join(lacking)}")
    return theta, RopeScaling(**{ours: given[key] for key, ours in ROPE_SCALING_KEYS.items()})


def _of_layers(hf: Mapping[str, Json], given: Mapping[str, Json]) -> Mapping[str, Json]:
    """The rope parameters of the model's layers, where they are given for each type of layer."""
    if not any(isinstance(value, dict) for value in given.values()):
        return given
    types = dict.fromkeys(hf.get("layer_types") or ["full_attention"])
    lacking = [kind for kind in types if not isinstance(given.get(kind), dict)]
    if lacking or any(given[kind] != given[next(iter(types))] for kind in types):
        raise ModelError(
            f"config.json of {hf.get('model_type')}: rope_parameters = {dict(given)!r} for layers of "
            f"{', '.join(types)}; only layers that all have the same are supported"
        )
    return given[next(iter(types))]
