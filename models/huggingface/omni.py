"""Nemotron 3 Nano Omni: three modules in one checkpoint, and a config.json with either of two namings.

NVIDIA's release says `llm_config` and `sound_config`, `vit_hidden_size`, `img_context_token_id` and
`sound_context_token_id`; transformers says `text_config` and `audio_config`, `vision_hidden_size`, `image_token_id` and
`audio_token_id`. Names of tensors are the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hetjax.models.errors import ModelError
from hetjax.models.huggingface.entry import Entry
from hetjax.models.huggingface.family import Configs
from hetjax.models.huggingface.nemotron_h import nemotron_h_config, nemotron_h_entries, nemotron_h_hf_config
from hetjax.models.huggingface.parakeet import (
    FEATURIZER,
    parakeet_buffers,
    parakeet_config,
    parakeet_entries,
    parakeet_hf_config,
)
from hetjax.models.huggingface.radio import IGNORED as RADIO_IGNORED
from hetjax.models.huggingface.radio import radio_config, radio_constants, radio_entries, radio_omni_config
from hetjax.models.json_values import Json, JsonObject

MODEL_TYPES = ("nemotron_h_omni", "NemotronH_Nano_Omni_Reasoning_V3")
LANGUAGE = "language_model."
KEPT = (r"input_conditioner\.norm_(mean|std)$", r"\.summary_idxs$", FEATURIZER)
IGNORED = (r"\.inv_freq$",)
ONES = (RADIO_IGNORED,)
FLOAT32 = (r"\.e_score_correction_bias$",)

TOKENS = {"image_token_id": 18, "audio_token_id": 27, "img_start_token_id": 21, "img_end_token_id": 22}
"""Ids that a config.json holds, which are no sizes."""


def omni_configs(hf: Mapping[str, Json]) -> Configs:
    """Return the config of each module that a config.json describes; `audio` only where it has an audio encoder.

    Raises ModelError where a part lacks, and whatever the readers of the parts raise.
    """
    language = hf.get("text_config") or hf.get("llm_config")
    if language is None or "vision_config" not in hf:
        raise ModelError(
            f"config.json of {hf.get('model_type')} lacks text_config (or llm_config) or vision_config; it is no "
            "omni-modal model"
        )
    configs = {"vision": radio_config(hf)}
    audio = hf.get("audio_config") or hf.get("sound_config")
    if audio is not None:
        configs["audio"] = parakeet_config(audio, output_width=language["hidden_size"])
    return {**configs, "llm": nemotron_h_config(language)}


def omni_hf_config(configs: Configs) -> JsonObject:
    """Return config.json by the names of transformers. Raises ModelError for a model without one of the three parts."""
    if lacking := {"vision", "audio", "llm"} - {name for name, config in configs.items() if config is not None}:
        raise ModelError(f"an omni-modal checkpoint has vision, audio and llm, but there is no {min(lacking)}")
    return {
        "architectures": ["NemotronH_Omni_Reasoning_V3"],
        "model_type": MODEL_TYPES[0],
        "text_config": nemotron_h_hf_config(configs["llm"]),
        "audio_config": parakeet_hf_config(configs["audio"]),
        **radio_omni_config(configs["vision"]),
        "ps_version": "v2",
        **TOKENS,
    }


def omni_entries(configs: Configs) -> dict[str, list[Entry]]:
    """Return the tensors of each module."""
    entries = {"vision": radio_entries(configs["vision"])}
    if "audio" in configs:
        entries["audio"] = parakeet_entries(configs["audio"])
    return {**entries, "llm": nemotron_h_entries(configs["llm"], prefix=LANGUAGE)}


def omni_constants(configs: Configs) -> dict[str, np.ndarray]:
    """Return tensors of a checkpoint that are no weights of ours, where none were read."""
    audio = parakeet_buffers(configs["audio"]) if "audio" in configs else {}
    return {**radio_constants(), **audio}
