"""The processor of a run: what its settings say of the data, fitted to its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hetjax.config.model_config import ModelConfig
from hetjax.data import DataConfig, Tokenizer, load_tokenizer
from hetjax.data.chat import (
    ChatTemplate,
    OmniTokenizer,
    Processor,
    ProcessorConfig,
    Room,
    load_omni_tokenizer,
    load_template,
)
from hetjax.errors import ConfigError, DataError
from hetjax.models import VisionConfig

# Where a checkpoint's config.json says which ids stand for encoder tokens.
_ID_KEYS = {
    "image": ("img_context_token_id", "image_token_id"),
    "audio": ("sound_context_token_id", "audio_token_id"),
}


def row_room(data: DataConfig, model: ModelConfig) -> Room | None:
    """What a row of a batch has room for; None where the run has no processor.

    Raises ConfigError where the processor and the model's encoders do not fit.
    """
    settings = data.processor
    if settings is None:
        _check_none_is_needed(model)
        return None
    _check_encoders(data.processor, model)
    return Room.of(settings, data.seq_len, **_layouts(model))


def make_processor(data: DataConfig, model: ModelConfig) -> Processor | None:
    """The processor of a run, with its tokenizer and chat template; None where the run has none.

    Beside a tokenizer.json, a config.json says which ids stand for encoder tokens that have no text, and a
    generation_config.json which ids end an answer. The template is that of `processor.chat_template`, else that of the
    tokenizer's folder, else the built-in one.

    Raises ConfigError where the parts do not fit together, DataError where a file cannot be read.
    """
    settings = data.processor
    if row_room(data, model) is None:
        return None
    return Processor(settings, _tokenizer(data.tokenizer), _template(data), seq_len=data.seq_len, **_layouts(model))


def tokenizer_of(data: DataConfig, model: ModelConfig, processor: Processor | None) -> Tokenizer | OmniTokenizer:
    """The tokenizer of a run. Raises ConfigError unless the language model has a row for every token, or DataError."""
    tokenizer = load_tokenizer(data.tokenizer) if processor is None else processor.tokenizer
    have, need = model.components["llm"].vocab_size, tokenizer.vocab_size
    if have < need:
        raise ConfigError(
            f"model.llm.vocab_size is {have}, but the tokenizer ({data.tokenizer or 'built in'}) has {need} "
            f"tokens; set it to {need} or more"
        )
    return tokenizer


def _layouts(model: ModelConfig) -> dict[str, Any]:
    vision = model.components.get("vision")
    takes_videos = getattr(vision, "tubelet", None) is not None
    return {
        "image_rows": None if vision is None else vision.image_rows,
        "video_rows": vision.video_rows if takes_videos else None,
        "pruning_rate": getattr(vision, "video_pruning_rate", 0.0),
    }


def _check_none_is_needed(model: ModelConfig) -> None:
    components = model.components
    needing = [name for name in components if name != "llm" and not isinstance(components[name], VisionConfig)]
    if needing:
        kind = type(components[needing[0]]).__name__
        raise ConfigError(
            f"model.{needing[0]} is a {kind}, whose inputs data.processor makes, but that is null; give data.processor"
        )


def _check_encoders(settings: ProcessorConfig, model: ModelConfig) -> None:
    """Raise ConfigError where an encoder would get nothing, or media no encoder."""
    components = model.components
    vision = components.get("vision")
    if isinstance(vision, VisionConfig) or getattr(vision, "image_size", None) is not None:
        raise ConfigError(
            f"data.processor is given, but model.vision is a {type(vision).__name__} of images of one size; set "
            "data.processor to null, or give a vision encoder that takes any size"
        )
    if vision is not None and not settings.image_rows + settings.video_rows:
        raise ConfigError(
            "data.processor.image_rows and video_rows are 0, but the model has a vision encoder; raise one of them, or "
            "leave the encoder out (model.without: [vision])"
        )
    if ("audio" in components) != (settings.clips > 0):
        has, fix = ("an", "raise it, or leave the encoder out (model.without: [audio])")
        if "audio" not in components:
            has, fix = ("no", "set it to 0")
        raise ConfigError(f"data.processor.clips is {settings.clips}, but the model has {has} encoder of sound; {fix}")


def _tokenizer(path: str | None) -> OmniTokenizer:
    if path is None:
        return load_omni_tokenizer(None)
    folder = _folder(path)
    found, generation = _json(folder / "config.json"), _json(folder / "generation_config.json")
    ids = {name: found[key] for name, keys in _ID_KEYS.items() for key in keys if isinstance(found.get(key), int)}
    stops = generation.get("eos_token_id")
    stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
    return load_omni_tokenizer(path, ids=ids, stop_ids=stops)


def _template(data: DataConfig) -> ChatTemplate:
    named = data.processor.chat_template
    if named is None and data.tokenizer is not None:
        return load_template(_folder(data.tokenizer))
    return load_template(named)


def _folder(path: str) -> Path:
    return Path(path) if Path(path).is_dir() else Path(path).parent


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' beside the tokenizer cannot be read: {error}; repair the file") from error
    return found if isinstance(found, dict) else {}
