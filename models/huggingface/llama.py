"""Llama's checkpoints (model_type "llama"): Llama 2, 3, 3.1, 3.2 and others of their shape."""

from __future__ import annotations

from collections.abc import Mapping

from hetjax.models.decoder_config import DecoderConfig
from hetjax.models.errors import ModelError
from hetjax.models.huggingface.config_json import check_keys
from hetjax.models.huggingface.decoder import READ, decoder_entries, shared_keys, shared_sizes
from hetjax.models.huggingface.entry import Entry
from hetjax.models.huggingface.known_keys import check_known
from hetjax.models.json_values import Json, JsonObject


def llama_entries(config: DecoderConfig, *, prefix: str = "") -> list[Entry]:
    """Return all tensors of a LlamaForCausalLM; `prefix` leads their names, e.g. "language_model."."""
    _check(config)
    return decoder_entries(config, prefix=prefix)


def llama_config(hf: Mapping[str, Json]) -> DecoderConfig:
    """Return the decoder that a config.json describes. Raises ModelError for what is not built, such as biases."""
    check_keys(hf, {"model_type": ("llama",), "mlp_bias": (False, None)})
    check_known(hf, READ, ("mlp_bias",))
    sizes = shared_sizes(hf)
    head_dim = hf.get("head_dim")
    return DecoderConfig(head_dim=sizes["width"] // sizes["heads"] if head_dim is None else head_dim, **sizes)


def llama_hf_config(config: DecoderConfig) -> JsonObject:
    """Return the config.json of a decoder. Raises ModelError for one that is no Llama."""
    _check(config)
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **shared_keys(config), "mlp_bias": False}


def _check(config: DecoderConfig) -> None:
    if type(config) is not DecoderConfig:
        raise ModelError(f"Llama cannot hold a {type(config).__name__}; write it as the model that it is of")
    if config.experts is not None or config.query_key_norm:
        raise ModelError(
            f"Llama has neither experts nor norms of queries and keys, but experts = {config.experts} and "
            f"query_key_norm = {config.query_key_norm}; write it as a Qwen3"
        )
