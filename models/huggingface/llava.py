"""LLaVA's checkpoints: a CLIP tower, a projector of two layers and a Llama, as transformers' Llava.

The names of a released checkpoint's tower begin with "vision_tower.vision_model."; those of one that transformers 5
made itself lack the second part. These are two families, told apart by the names in the files.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hetjax.models.clip_config import ClipConfig
from hetjax.models.errors import ModelError
from hetjax.models.huggingface.clip import clip_config, clip_entries, clip_hf_config
from hetjax.models.huggingface.config_json import check_keys, required_keys
from hetjax.models.huggingface.entry import Entry, kernel, same
from hetjax.models.huggingface.family import Configs
from hetjax.models.huggingface.known_keys import check_known
from hetjax.models.huggingface.llama import llama_config, llama_entries, llama_hf_config
from hetjax.models.json_values import Json, JsonObject

LANGUAGE = "language_model."
TOWER, BARE_TOWER = "vision_tower.vision_model.", "vision_tower."
KEPT = (r"^vision_tower\.(vision_model\.)?(post_layernorm|encoder\.layers\.\d+)\.", r"\.embeddings\.position_ids$")
"""Layers behind the one whose features are taken, and the norm behind them, change nothing."""
TOKENS = {"image_token_index": 18}
"""The id of an image's tokens in a prompt, of the built-in tokenizer."""

_PROJECTOR = "multi_modal_projector."
_READ = (
    "text_config", "vision_config", "image_token_index", "image_token_id", "image_seq_length", "vision_feature_layer",
    "tie_word_embeddings", "ignore_index", "vocab_size",
)  # fmt: skip
_BUILT: dict[str, tuple[Json, ...]] = {
    "projector_hidden_act": ("gelu",), "vision_feature_select_strategy": ("default",),
    "multimodal_projector_bias": (True,),
}  # fmt: skip
_TEXT: JsonObject = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32,
}  # fmt: skip
"""What transformers takes for the keys of `text_config` that a released config.json leaves out: a Llama of 7 B."""


def llava_configs(hf: Mapping[str, Json]) -> Configs:
    """Return the config of each module that a config.json describes.

    Raises ModelError for another language model than Llama, and for what is not built: features of several layers, the
    class token among them, a projector without biases.
    """
    check_keys(hf, _BUILT)
    check_known(hf, _BUILT, _READ)
    found = required_keys(hf, text="text_config", vision="vision_config")
    if found["text"].get("model_type", "llama") != "llama" or found["vision"].get("model_type") != "clip_vision_model":
        raise ModelError(
            f"config.json of llava: text_config is of model_type {found['text'].get('model_type')!r} and vision_config "
            f"of {found['vision'].get('model_type')!r}; only llama and clip_vision_model are supported"
        )
    layer = hf.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise ModelError(
            f"config.json of llava: vision_feature_layer = {layer!r} is not supported; it must be one layer"
        )
    tied = hf.get("tie_word_embeddings", False) or found["text"].get("tie_word_embeddings", False)
    llm = llama_config({**_TEXT, "model_type": "llama", **found["text"], "tie_word_embeddings": tied})
    return {"vision": clip_config(found["vision"], layer, output_width=llm.width), "llm": llm}


def llava_hf_config(configs: Configs) -> JsonObject:
    """Return the config.json of these modules, whose tower ends where its features are taken.

    Raises ModelError for modules that it cannot hold.
    """
    vision, llm = _checked(configs)
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": llama_hf_config(llm),
        "vision_config": clip_hf_config(vision),
        "vision_feature_layer": -1,
        **{key: value for key, (value, *_) in _BUILT.items()},
        "image_seq_length": vision.tokens_per_image,
        "tie_word_embeddings": llm.tie_embeddings,
        **TOKENS,
    }


def llava_entries(configs: Configs, *, tower: str = TOWER) -> dict[str, list[Entry]]:
    """Return the tensors of each module; `tower` leads the names of the tower's.

    Raises ModelError for modules that the family cannot hold.
    """
    vision, llm = _checked(configs)
    between, out = (vision.projector_width,), (vision.output_width,)
    projector = [
        kernel(f"{_PROJECTOR}linear_1.weight", "projector/up/kernel", ins=(vision.width,), outs=between),
        same(f"{_PROJECTOR}linear_1.bias", "projector/up/bias"),
        kernel(f"{_PROJECTOR}linear_2.weight", "projector/down/kernel", ins=between, outs=out),
        same(f"{_PROJECTOR}linear_2.bias", "projector/down/bias"),
    ]
    return {
        "vision": clip_entries(vision, prefix=tower) + projector,
        "llm": llama_entries(llm, prefix=LANGUAGE),
    }


def llava_constants(configs: Configs, *, tower: str = TOWER) -> dict[str, np.ndarray]:
    """Return the norm behind the tower, which changes nothing, where no checkpoint gave one."""
    width = configs["vision"].width
    return {
        f"{tower}post_layernorm.weight": np.ones(width, np.float32),
        f"{tower}post_layernorm.bias": np.zeros(width, np.float32),
    }


def _checked(configs: Configs):
    vision, llm = configs["vision"], configs["llm"]
    if (
        not isinstance(vision, ClipConfig)
        or vision.projector_width != vision.output_width
        or vision.output_width is None
    ):
        raise ModelError(
            "LLaVA has a CLIP tower and a projector whose hidden width is that of the language model, but the vision "
            f"encoder is {vision}; give it type: clip and projector_width = output_width"
        )
    return vision, llm
