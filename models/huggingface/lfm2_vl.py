"""SigLIP 2 for images of any size, a projector and a decoder in one checkpoint: the shape of transformers' LFM2-VL.

`Lfm2VlForConditionalGeneration` takes any language model as its `text_config`. With a Llama or a Qwen3, a projector
without a norm and a token for each patch it computes what `Siglip2Encoder` and `LanguageModel` do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from hetjax.models.decoder_config import DecoderConfig
from hetjax.models.errors import ModelError
from hetjax.models.huggingface.config_json import check_keys, required_keys
from hetjax.models.huggingface.entry import Entry
from hetjax.models.huggingface.family import Configs
from hetjax.models.huggingface.known_keys import check_known
from hetjax.models.huggingface.llama import llama_config, llama_entries, llama_hf_config
from hetjax.models.huggingface.qwen3 import qwen3_config, qwen3_entries, qwen3_hf_config
from hetjax.models.huggingface.siglip2 import siglip2_config, siglip2_entries, siglip2_hf_config
from hetjax.models.json_values import Json, JsonObject

LANGUAGE = "model.language_model."
HEAD = "lm_head.weight"
KEPT = (r"^model\.vision_tower\.head\.",)
TOKENS = {"image_token_id": 18}
"""The id of an image's tokens in a prompt, of the built-in tokenizer."""

_TOWER, _PROJECTOR = "model.vision_tower.", "model.multi_modal_projector."
_READ = ("text_config", "vision_config", "projector_hidden_size", "image_token_id", "tie_word_embeddings")

_BUILT: JsonObject = {
    "projector_hidden_act": "gelu", "projector_bias": True, "projector_use_layernorm": False, "downsample_factor": 1,
}  # fmt: skip
_DEFAULTS: JsonObject = {"projector_use_layernorm": True, "downsample_factor": 2}


def lfm2_vl_configs(hf: Mapping[str, Json]) -> Configs:
    """Return the config of each module that a config.json describes.

    Raises ModelError for another language model than Llama or Qwen3, and for what is not built: a norm in the
    projector, patches that are merged.
    """
    check_keys({**_DEFAULTS, **hf}, {key: (value,) for key, value in _BUILT.items()})
    check_known(hf, _BUILT, _READ)
    found = required_keys(hf, text="text_config", vision="vision_config", projector="projector_hidden_size")
    text = found["text"]
    readers = {"llama": llama_config, "qwen3": qwen3_config, "qwen3_moe": qwen3_config}
    if text.get("model_type") not in readers:
        raise ModelError(
            f"config.json of lfm2_vl: text_config is of model_type {text.get('model_type')!r}; only "
            f"{', '.join(readers)} are supported"
        )
    # The head is tied by what the model around says; the language model in it has none.
    tied = hf.get("tie_word_embeddings", True)
    llm = dataclasses.replace(readers[text["model_type"]](text), tie_embeddings=tied)
    vision = siglip2_config(found["vision"], projector_width=found["projector"], output_width=llm.width)
    _check(vision.image_size)
    return {"vision": vision, "llm": llm}


def lfm2_vl_hf_config(configs: Configs) -> JsonObject:
    """Return the config.json of these modules. Raises ModelError for modules that it cannot hold."""
    vision, llm = configs["vision"], configs["llm"]
    lfm2_vl_entries(configs)  # raises for what has no place
    text = qwen3_hf_config(llm) if llm.query_key_norm else llama_hf_config(llm)
    return {
        "architectures": ["Lfm2VlForConditionalGeneration"],
        "model_type": "lfm2_vl",
        "text_config": text,
        "vision_config": siglip2_hf_config(vision),
        "projector_hidden_size": vision.projector_width,
        **_BUILT,
        "tie_word_embeddings": llm.tie_embeddings,
        **TOKENS,
    }


def lfm2_vl_entries(configs: Configs) -> dict[str, list[Entry]]:
    """Return the tensors of each module. Raises ModelError for modules that the family cannot hold."""
    vision, llm = configs["vision"], configs["llm"]
    if not isinstance(llm, DecoderConfig):
        raise ModelError(f"LFM2-VL takes a Llama or a Qwen3, and the language model is a {type(llm).__name__}")
    _check(getattr(vision, "image_size", 0))
    if vision.projector_width is None:
        raise ModelError("LFM2-VL has a projector, and the vision encoder has none: give it a projector_width")
    entries = qwen3_entries(llm) if llm.query_key_norm else llama_entries(llm)
    return {
        "vision": siglip2_entries(vision, prefix=_TOWER, projector=_PROJECTOR),
        "llm": [dataclasses.replace(entry, names=tuple(map(_inside, entry.names))) for entry in entries],
    }


def _check(image_size: int | None) -> None:
    if image_size is not None:
        raise ModelError(
            "LFM2-VL takes a SigLIP 2 tower for images of any size (siglip2_vision_model, image_size: null); another "
            "encoder has no place in it"
        )


def _inside(name: str) -> str:
    """The name of a language model's tensor in the model around it."""
    return name if name == HEAD else LANGUAGE + name.removeprefix("model.")
