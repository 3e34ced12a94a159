"""Nemotron-H's checkpoints, as NVIDIA releases them and transformers saves them, and their config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hetjax.models.errors import ModelError
from hetjax.models.huggingface.config_json import check_keys, required_keys
from hetjax.models.huggingface.entry import Entry, kernel, same
from hetjax.models.huggingface.known_keys import check_known, key_names
from hetjax.models.huggingface.mamba import mamba_entries
from hetjax.models.json_values import Json, JsonObject
from hetjax.models.nemotron_h_config import NemotronHConfig
from hetjax.models.parts.groups import layer_places
from hetjax.models.parts.mamba import MambaConfig
from hetjax.models.parts.moe import MoEConfig

LETTERS = {
    "linear_attention": "M", "mamba": "M", "full_attention": "*", "attention": "*", "moe": "E", "mlp": "-",
}  # fmt: skip
"""Names of kinds of layers in `layers_block_type`, those of older files too."""

BUILT: dict[str, tuple[Json, ...]] = {
    "model_type": ("nemotron_h",), "mlp_hidden_act": ("relu2",), "mamba_hidden_act": ("silu",),
    "use_conv_bias": (True,), "use_bias": (False,), "mlp_bias": (False,), "attention_bias": (False,),
    "mamba_proj_bias": (False,), "n_group": (1, None), "topk_group": (1, None), "n_shared_experts": (1,),
    "moe_latent_size": (None,), "num_nextn_predict_layers": (0, None), "attention_dropout": (0, None),
    "hidden_dropout": (0, None), "sliding_window": (None,), "residual_in_fp32": (False,),
    # The last as transformers 5 writes infinity, which JSON lacks.
    "time_step_limit": (None, [0.0, math.inf], (0.0, math.inf), [0.0, {"__float__": "Infinity"}]),
}  # fmt: skip
"""The values of keys that mean what `hetjax.models.nemotron_h` computes."""

READ = key_names(
    """
    layers_block_type layer_types hybrid_override_pattern num_hidden_layers vocab_size hidden_size num_attention_heads
    num_key_value_heads head_dim layer_norm_epsilon norm_eps mamba_num_heads mamba_head_dim n_groups ssm_state_size
    conv_kernel chunk_size n_routed_experts num_experts_per_tok moe_intermediate_size
    moe_shared_expert_intermediate_size routed_scaling_factor norm_topk_prob intermediate_size tie_word_embeddings
    """
)
"""Keys of sizes."""

UNUSED = key_names(
    """
    expand time_step_min time_step_max time_step_floor mamba_ssm_cache_dtype use_mamba_kernels num_logits_to_keep
    moe_shared_expert_overlap rescale_prenorm_residual output_router_logits mtp_layers_block_type
    mtp_hybrid_override_pattern rope_theta partial_rotary_factor
    """
)
"""Keys of how weights start, of kernels and of parts that these models lack: attention knows no positions."""


def nemotron_h_entries(config: NemotronHConfig, *, prefix: str = "") -> list[Entry]:
    """Return all tensors of a NemotronHForCausalLM; `prefix` leads their names, e.g. "language_model.".

    A router's `counts` are no part of a checkpoint: they are 0 between steps. Raises ModelError for what their
    files cannot hold.
    """
    _check(config)
    width = config.width
    entries = [
        same(f"{prefix}backbone.embeddings.weight", "embedding"),
        same(f"{prefix}backbone.norm_f.weight", "norm/scale"),
        kernel(f"{prefix}lm_head.weight", "head/kernel", ins=(width,), outs=(config.vocab_size,)),
    ]
    for i, place in enumerate(layer_places(config.pattern)):
        theirs, path, index = f"{prefix}backbone.layers.{i}", f"layers/{place.path}", place.index
        entries.append(same(f"{theirs}.norm.weight", f"{path}/norm/scale", *index))
        theirs, path = f"{theirs}.mixer.", f"{path}/mixer"
        match place.letter:
            case "M":
                entries += mamba_entries(theirs, path, index, config.mamba, width)
            case "*":
                entries += _attention_entries(config, theirs, path, index)
            case "E":
                entries += _expert_entries(config, theirs, path, index)
            case "-":
                entries += _mlp_entries(theirs, path, index, width, config.mlp_width)
    return entries


def _attention_entries(config: NemotronHConfig, theirs: str, path: str, index: tuple[int, ...]) -> list[Entry]:
    width, heads, kv_heads = (config.width,), (config.heads, config.head_dim), (config.kv_heads, config.head_dim)
    return [
        kernel(f"{theirs}q_proj.weight", f"{path}/query/kernel", *index, ins=width, outs=heads),
        kernel(f"{theirs}k_proj.weight", f"{path}/key/kernel", *index, ins=width, outs=kv_heads),
        kernel(f"{theirs}v_proj.weight", f"{path}/value/kernel", *index, ins=width, outs=kv_heads),
        kernel(f"{theirs}o_proj.weight", f"{path}/output/kernel", *index, ins=heads, outs=width),
    ]


def _mlp_entries(theirs: str, path: str, index: tuple[int, ...], width: int, hidden: int) -> list[Entry]:
    return [
        kernel(f"{theirs}up_proj.weight", f"{path}/up/kernel", *index, ins=(width,), outs=(hidden,)),
        kernel(f"{theirs}down_proj.weight", f"{path}/down/kernel", *index, ins=(hidden,), outs=(width,)),
    ]


def _expert_entries(config: NemotronHConfig, theirs: str, path: str, index: tuple[int, ...]) -> list[Entry]:
    width, hidden, experts = (config.width,), (config.expert_width,), config.experts
    return [
        kernel(f"{theirs}gate.weight", f"{path}/router/kernel", *index, ins=width, outs=(experts.count,)),
        same(f"{theirs}gate.e_score_correction_bias", f"{path}/router/bias", *index),
        *(
            kernel(f"{theirs}experts.{e}.{name}_proj.weight", f"{path}/{name}", *index, e, ins=ins, outs=outs)
            for e in range(experts.count)
            for name, ins, outs in (("up", width, hidden), ("down", hidden, width))
        ),
        *_mlp_entries(f"{theirs}shared_experts.", f"{path}/shared", index, config.width, experts.shared_width),
    ]


# ── config.json ──────────────────────────────────────────────────────────────────────────────────────


def nemotron_h_config(hf: Mapping[str, Json], *, bias_rate: float = 1e-3, balance_loss: float = 0.0) -> NemotronHConfig:
    """Return the model that a config.json (or a part of one) describes, without a setting of how experts are balanced.

    Steps of time have no lower limit, as in training by NVIDIA and in vLLM; transformers, which in a prefill takes
    `time_step_min` for one, is equalled by `MambaConfig.min_dt`. Raises ModelError for keys that lack, and for what is
    not built: biases, groups of experts, latent experts, prediction of several tokens, sliding windows.
    """
    check_keys(hf, BUILT)
    check_known(hf, BUILT, READ, UNUSED)
    pattern = _pattern(hf)
    sizes = {"pattern": pattern, **required_keys(hf, vocab_size="vocab_size", width="hidden_size")}
    if "*" in pattern:
        sizes |= required_keys(hf, heads="num_attention_heads", kv_heads="num_key_value_heads", head_dim="head_dim")
    epsilon = hf.get("layer_norm_epsilon", hf.get("norm_eps", 1e-5))
    if "M" in pattern:
        theirs = {"heads": "mamba_num_heads", "head_dim": "mamba_head_dim", "groups": "n_groups"}
        sizes["mamba"] = MambaConfig(
            **required_keys(hf, **theirs, state="ssm_state_size", conv_kernel="conv_kernel", chunk="chunk_size"),
            norm_epsilon=epsilon,
        )
    if "E" in pattern:
        theirs = {"count": "n_routed_experts", "top_k": "num_experts_per_tok"}
        sizes |= required_keys(hf, expert_width="moe_intermediate_size")
        sizes["experts"] = MoEConfig(
            **required_keys(
                hf, **theirs, shared_width="moe_shared_expert_intermediate_size", factor="routed_scaling_factor"
            ),
            activation="relu2",
            scores="sigmoid",
            normalize=hf.get("norm_topk_prob", True),
            bias_rate=bias_rate,
            balance_loss=balance_loss,
        )
    if "-" in pattern:
        sizes |= required_keys(hf, mlp_width="intermediate_size")
    return NemotronHConfig(**sizes, norm_epsilon=epsilon, tie_embeddings=hf.get("tie_word_embeddings", False))


def nemotron_h_hf_config(config: NemotronHConfig) -> JsonObject:
    """Return the config.json of a model, without sizes of kinds of layers that it lacks.

    Raises as `nemotron_h_entries`.
    """
    _check(config)
    mamba, experts = config.mamba, config.experts
    keys = {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "hybrid_override_pattern": config.pattern,
        "num_hidden_layers": config.layers,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "use_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "mamba_proj_bias": False,
        "use_conv_bias": True,
        "mlp_hidden_act": "relu2",
        "mamba_hidden_act": "silu",
    }
    if mamba is not None:
        keys |= {
            "mamba_num_heads": mamba.heads,
            "mamba_head_dim": mamba.head_dim,
            "n_groups": mamba.groups,
            "ssm_state_size": mamba.state,
            "conv_kernel": mamba.conv_kernel,
            "chunk_size": mamba.chunk,
        }
    if experts is not None:
        keys |= {
            "n_routed_experts": experts.count,
            "num_experts_per_tok": experts.top_k,
            "moe_intermediate_size": config.expert_width,
            "n_shared_experts": 1,
            "moe_shared_expert_intermediate_size": experts.shared_width,
            "norm_topk_prob": experts.normalize,
            "routed_scaling_factor": experts.factor,
            "n_group": 1,
            "topk_group": 1,
        }
    return keys | ({"intermediate_size": config.mlp_width} if config.mlp_width else {})


def _pattern(hf: Mapping[str, Json]) -> str:
    kinds = hf.get("layers_block_type") or hf.get("layer_types")
    if kinds is None:
        return required_keys(hf, pattern="hybrid_override_pattern")["pattern"]
    unknown = sorted(set(kinds) - set(LETTERS))
    if unknown:
        raise ModelError(f"config.json of {hf.get('model_type')}: layers of {', '.join(unknown)} are not supported")
    return "".join(LETTERS[kind] for kind in kinds)


def _check(config: NemotronHConfig) -> None:
    """Raise ModelError for what their files cannot hold."""
    if config.tie_embeddings:
        raise ModelError("Nemotron-H has a head of its own: set tie_embeddings=False")
    mamba, experts = config.mamba, config.experts
    if mamba is not None and mamba.norm_epsilon != config.norm_epsilon:
        raise ModelError(
            f"Nemotron-H has one epsilon for all norms: mamba.norm_epsilon = {mamba.norm_epsilon} must be norm_epsilon "
            f"= {config.norm_epsilon}"
        )
    if experts is None:
        return
    theirs = {"activation": "relu2", "scores": "sigmoid"}
    other = {name: getattr(experts, name) for name, value in theirs.items() if getattr(experts, name) != value}
    wrong = [f"{name} = {value!r} instead of {theirs[name]!r}" for name, value in other.items()]
    wrong += [] if experts.shared_width else ["shared_width = 0 instead of a positive one"]
    wrong += [] if experts.bias_rate is not None else ["bias_rate = None instead of a number, 0 for a bias that stays"]
    if wrong:
        raise ModelError(f"Nemotron-H cannot hold these experts: {', '.join(wrong)}")
