"""Nemotron 3 Nano Omni: three modules in one checkpoint, and a config.json with either of two namings.

NVIDIA's release says `llm_config` and `sound_config`, `vit_hidden_size`, `img_context_token_id` and
`sound_context_token_id`; transformers says `text_config` and `audio_config`, `vision_hidden_size`, `image_token_id` and
`audio_token_id`. Names of tensors are the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hetjax.models.errors import ModelError
from hetjax.models.huggingface.config_json import check_keys
from hetjax.models.huggingface.entry import Entry
from hetjax.models.huggingface.family import Configs
from hetjax.models.huggingface.known_keys import check_known, key_names
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

READ = key_names(
    """
    text_config llm_config vision_config audio_config sound_config vision_hidden_size vit_hidden_size
    projector_hidden_size downsample_ratio video_pruning_rate video_temporal_patch_size
    """
)
"""Keys of sizes, beside those of the parts."""

INPUTS = key_names(
    """
    image_token_id audio_token_id video_token_id img_start_token_id img_end_token_id img_context_token_id
    sound_context_token_id video_context_token_id img_context_token img_start_token img_end_token video_context_token
    sound_context_token sound_start_token sound_end_token image_tag_type force_image_size patch_size norm_mean norm_std
    template system_message use_thumbnail dynamic_image_size dynamic_resolution min_dynamic_patch max_dynamic_patch
    min_num_patches max_num_patches num_tiles max_sequence_length
    """
)
"""Keys of how prompts, images and clips come to the model, which the processor settles."""

BUILT: dict[str, tuple[Json, ...]] = {
    "ps_version": ("v2", None), "select_layer": (-1, None), "tie_word_embeddings": (False, None),
}  # fmt: skip
"""The values of keys that mean what the modules compute."""


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
    check_keys(hf, BUILT)
    check_known(hf, READ, INPUTS, BUILT)
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
