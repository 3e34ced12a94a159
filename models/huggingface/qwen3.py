"""Qwen3's checkpoints: dense (model_type "qwen3") and with a mixture of experts ("qwen3_moe")."""

from __future__ import annotations

from collections.abc import Mapping

from hetjax.models.decoder_config import DecoderConfig
from hetjax.models.errors import ModelError
from hetjax.models.huggingface.config_json import check_keys
from hetjax.models.huggingface.decoder import READ, decoder_entries, shared_keys, shared_sizes
from hetjax.models.huggingface.entry import Entry
from hetjax.models.huggingface.known_keys import check_known, key_names
from hetjax.models.json_values import Json, JsonObject
from hetjax.models.parts.moe import MoEConfig

WINDOWS = frozenset(("use_sliding_window", "sliding_window", "max_window_layers"))
"""Keys of sliding windows, of which the first turns the others off."""
EXPERTS = key_names(
    """
    decoder_sparse_step mlp_only_layers num_experts num_local_experts num_experts_per_tok moe_intermediate_size
    norm_topk_prob router_aux_loss_coef output_router_logits
    """
)
"""Keys of experts; the last two are of a loss that is not ours."""


def qwen3_entries(config: DecoderConfig, *, prefix: str = "") -> list[Entry]:
    """Return all tensors of a Qwen3ForCausalLM or Qwen3MoeForCausalLM; `prefix` leads their names.

    Experts have a tensor each, as in the releases and as transformers saves them.
    """
    _check(config)
    return decoder_entries(config, prefix=prefix)


def qwen3_config(hf: Mapping[str, Json]) -> DecoderConfig:
    """Return the decoder that a config.json describes.

    Raises ModelError for what is not built: biases, sliding windows, layers without experts among others with them.
    The auxiliary loss of their training is not ours: `MoEConfig.balance_loss` is to be set where one is wanted.
    """
    check_keys(hf, {"model_type": ("qwen3", "qwen3_moe"), "use_sliding_window": (False, None)})
    check_known(hf, READ, WINDOWS, EXPERTS if hf.get("model_type") == "qwen3_moe" else ())
    sizes = {"query_key_norm": True, "head_dim": 128, **shared_sizes(hf)}
    if hf.get("head_dim") is not None:
        sizes["head_dim"] = hf["head_dim"]
    if hf.get("model_type") == "qwen3_moe":
        check_keys(hf, {"decoder_sparse_step": (1,), "mlp_only_layers": ([], None)})
        count = hf.get("num_experts", hf.get("num_local_experts"))
        lacking = [key for key in ("num_experts_per_tok", "moe_intermediate_size") if key not in hf]
        if count is None or lacking:
            raise ModelError(f"config.json of qwen3_moe lacks {', '.join(lacking or ['num_experts'])}")
        sizes["mlp_width"] = hf["moe_intermediate_size"]
        sizes["experts"] = MoEConfig(
            count=count, top_k=hf["num_experts_per_tok"], normalize=hf.get("norm_topk_prob", False)
        )
    return DecoderConfig(**sizes)


def qwen3_hf_config(config: DecoderConfig) -> JsonObject:
    """Return the config.json of a decoder. Raises ModelError for one that is no Qwen3."""
    _check(config)
    shared, experts = shared_keys(config), config.experts
    if experts is None:
        return {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **shared, "use_sliding_window": False}
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **shared,
        "use_sliding_window": False,
        "moe_intermediate_size": config.mlp_width,
        "num_experts": experts.count,
        "num_experts_per_tok": experts.top_k,
        "norm_topk_prob": experts.normalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _check(config: DecoderConfig) -> None:
    if type(config) is not DecoderConfig:
        raise ModelError(f"Qwen3 cannot hold a {type(config).__name__}; write it as the model that it is of")
    if not config.query_key_norm:
        raise ModelError("Qwen3 norms queries and keys: set query_key_norm=True, or write it as a Llama")
    experts = config.experts
    if experts is None:
        return
    theirs = {"activation": "swiglu", "shared_width": 0, "scores": "softmax", "factor": 1.0, "bias_rate": None}
    other = {name: getattr(experts, name) for name, value in theirs.items() if getattr(experts, name) != value}
    if other:
        wrong = ", ".join(f"{name} = {value!r} instead of {theirs[name]!r}" for name, value in other.items())
        raise ModelError(f"Qwen3 cannot hold these experts: {wrong}")
