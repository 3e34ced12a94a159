"""Build the processor of a run, fitted to its model, with its tokenizer and chat template."""

from __future__ import annotations

import json
from pathlib import Path

from hetjax.config.run_config import TrainConfig
from hetjax.data import Tokenizer, load_tokenizer
from hetjax.data.chat import ChatTemplate, OmniTokenizer, Processor, RowCapacity, load_omni_tokenizer, load_template
from hetjax.data.modalities import placeholders
from hetjax.errors import ConfigError, DataError
from hetjax.models import VisionConfig


def row_room(config: TrainConfig) -> RowCapacity | None:
    """Return the capacity of a row of a batch; None where the run has no processor.

    Raises ConfigError where the processor and the model's encoders do not fit.
    """
    settings = config.data.processor
    if settings is None:
        _check_none_is_needed(config)
        return None
    _check_encoders(config)
    return RowCapacity.of(settings, config.data.seq_len, config.model.components)


def make_processor(config: TrainConfig) -> Processor | None:
    """Return the processor of a run, with its tokenizer and chat template; None where the run has none.

    Beside a tokenizer.json, a config.json says which ids stand for encoder tokens that have no text, and a
    generation_config.json which ids end an answer. The template is that of `processor.chat_template`, else that of the
    tokenizer's folder, else the built-in one.

    Raises ConfigError where the parts do not fit together, DataError where a file cannot be read.
    """
    settings = config.data.processor
    if row_room(config) is None:
        return None
    components = config.model.components
    return Processor(settings, _tokenizer(config), _template(config), seq_len=config.data.seq_len, encoders=components)


def tokenizer_of(config: TrainConfig, processor: Processor | None) -> Tokenizer | OmniTokenizer:
    """Return the tokenizer of a run.

    Raises ConfigError unless the language model has a row for every token, DataError where a file cannot be read.
    """
    tokenizer = load_tokenizer(config.data.tokenizer) if processor is None else processor.tokenizer
    have, need = config.model.components["llm"].vocab_size, tokenizer.vocab_size
    if have < need:
        raise ConfigError(
            f"model.llm.vocab_size is {have}, but the tokenizer ({config.data.tokenizer or 'built in'}) has {need} "
            f"tokens; set it to {need} or more"
        )
    return tokenizer


def _check_none_is_needed(config: TrainConfig) -> None:
    components = config.model.components
    needing = [name for name in components if name != "llm" and not isinstance(components[name], VisionConfig)]
    if needing:
        kind = type(components[needing[0]]).__name__
        raise ConfigError(
            f"model.{needing[0]} is a {kind}, whose inputs data.processor makes, but that is null; give data.processor"
        )


def _check_encoders(config: TrainConfig) -> None:
    """Raise ConfigError where an encoder would get nothing."""
    components = config.model.components
    vision = components.get("vision")
    if isinstance(vision, VisionConfig) or getattr(vision, "image_size", None) is not None:
        raise ConfigError(
            f"data.processor is given, but model.vision is a {type(vision).__name__} of images of one size; set "
            "data.processor to null, or give a vision encoder that takes any size"
        )
    capacity = RowCapacity.of(config.data.processor, config.data.seq_len, components)
    for module in components:
        modalities = [each for each in capacity.modalities.values() if each.placeholder.module == module]
        if not modalities or any(map(capacity.takes, modalities)):
            continue
        settings = [each.resources[0].setting.removeprefix("processor.") for each in modalities]
        are, which = ("is", "it") if len(settings) == 1 else ("are", "one of them")
        an = "an" if module[0] in "aeiou" else "a"
        raise ConfigError(
            f"data.processor.{' and '.join(settings)} {are} 0, but the model has {an} {module} encoder; raise {which}, "
            f"or leave the encoder out (model.without: [{module}])"
        )


def _tokenizer(config: TrainConfig) -> OmniTokenizer:
    path = config.data.tokenizer
    if path is None:
        return load_omni_tokenizer(None)
    folder = _folder(path)
    found, generation = _json(folder / "config.json"), _json(folder / "generation_config.json")
    ids = {
        placeholder.name: found[key]
        for placeholder in placeholders()
        for key in placeholder.id_keys
        if isinstance(found.get(key), int)
    }
    stops = generation.get("eos_token_id")
    stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
    return load_omni_tokenizer(path, ids=ids, stop_ids=stops)


def _template(config: TrainConfig) -> ChatTemplate:
    named = config.data.processor.chat_template
    if named is None and config.data.tokenizer is not None:
        return load_template(_folder(config.data.tokenizer))
    return load_template(named)


def _folder(path: str) -> Path:
    return Path(path) if Path(path).is_dir() else Path(path).parent


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}' beside the tokenizer cannot be read: {error}; repair the file") from error
    return found if isinstance(found, dict) else {}
