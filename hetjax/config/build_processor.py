"""Build the processor of a run, fitted to its model, with its tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from hetjax.config.model_config import ModelConfig
from hetjax.data import DataConfig, Tokenizer, load_tokenizer
from hetjax.data.chat import (
    ChatTemplate,
    OmniTokenizer,
    Processor,
    RowCapacity,
    end_mark,
    load_omni_tokenizer,
    load_template,
)
from hetjax.data.chat.template import BUILT_IN_MARKS, DEFAULT_TEMPLATE
from hetjax.data.modalities import placeholders
from hetjax.errors import ConfigError, DataError
from hetjax.models import VisionConfig


def row_capacity(data: DataConfig, model: ModelConfig) -> RowCapacity | None:
    """Return the capacity of a row of a batch; None where the run has no processor.

    Raises ConfigError where the processor and the model's encoders do not fit.
    """
    if data.processor is None:
        _check_none_is_needed(model)
        return None
    _check_fixed_size(model)
    capacity = RowCapacity.of(data.processor, data.seq_len, model.components)
    _check_encoders_have_inputs(capacity, model)
    return capacity


def make_processor(data: DataConfig, model: ModelConfig) -> Processor | None:
    """Return the processor of a run, with its tokenizer and chat template; None where the run has none.

    Beside a tokenizer.json, a config.json says which ids stand for encoder tokens that have no text, and a
    generation_config.json or config.json which ids end an answer, beside the end mark of the template. The template is
    that of `processor.chat_template`, else of the tokenizer's folder, else the built-in one.

    Raises ConfigError where the parts do not fit together, DataError where a file cannot be read.
    """
    if row_capacity(data, model) is None:
        return None
    tokenizer, template = _tokenizer(data.tokenizer), _template(data)
    _check_built_in_template(template, tokenizer, data.tokenizer)
    end = end_mark(template, **data.processor.template_options)
    learned = [token for token in tokenizer.encode(end) if token in tokenizer.special_ids][:1]
    return Processor(
        data.processor,
        tokenizer.stopping_at(learned),  # what ends an answer in training ends it where one is generated
        template,
        seq_len=data.seq_len,
        encoders=model.components,
    )


def tokenizer_of(data: DataConfig, model: ModelConfig, processor: Processor | None) -> Tokenizer | OmniTokenizer:
    """Return the tokenizer of a run.

    Raises ConfigError where the language model has fewer embeddings than the tokenizer tokens, DataError where a file
    cannot be read.
    """
    tokenizer = load_tokenizer(data.tokenizer) if processor is None else processor.tokenizer
    have, need = model.components["llm"].vocab_size, tokenizer.vocab_size
    if have < need:
        raise ConfigError(
            f"model.llm.vocab_size is {have}, but the tokenizer ({data.tokenizer or 'built in'}) has {need} "
            f"tokens; set it to {need} or more"
        )
    return tokenizer


def check_blank(blank: Sequence[str], data: DataConfig, model: ModelConfig) -> None:
    """Raise ConfigError where `eval.blank` names a modality that the run does not take."""
    capacity = row_capacity(data, model)
    if capacity is None:
        taken = ["image"] if "vision" in model.components else []
    else:
        taken = [name for name, modality in capacity.modalities.items() if capacity.takes(modality)]
    for name in blank:
        if name not in taken:
            raise ConfigError(
                f"eval.blank names {name}, but the run takes {', '.join(taken) or 'text alone'}; leave it out"
            )


def _check_built_in_template(template: ChatTemplate, tokenizer: OmniTokenizer, path: str | None) -> None:
    """Raise ConfigError where the built-in template is taken for want of another, but the tokenizer lacks its marks."""
    lacking = [mark for mark in BUILT_IN_MARKS if mark not in tokenizer.specials]
    if template.source == DEFAULT_TEMPLATE and lacking:
        raise ConfigError(
            f"there is no chat template beside the tokenizer '{path}', and it lacks {' and '.join(lacking)}, which the "
            "built-in template writes; give data.processor.chat_template, a .jinja file or a folder that has one"
        )


def _check_none_is_needed(model: ModelConfig) -> None:
    components = model.components
    needing = [name for name in components if name != "llm" and not isinstance(components[name], VisionConfig)]
    if needing:
        kind = type(components[needing[0]]).__name__
        raise ConfigError(
            f"model.{needing[0]} is a {kind}, whose inputs data.processor makes, but that is null; give data.processor"
        )


def _check_fixed_size(model: ModelConfig) -> None:
    """Raise ConfigError where the vision encoder takes images of one size, which no processor makes."""
    vision = model.components.get("vision")
    if isinstance(vision, VisionConfig) or getattr(vision, "image_size", None) is not None:
        raise ConfigError(
            f"data.processor is given, but model.vision is a {type(vision).__name__} of images of one size; set "
            "data.processor to null, or give a vision encoder that takes any size"
        )


def _check_encoders_have_inputs(capacity: RowCapacity, model: ModelConfig) -> None:
    """Raise ConfigError where an encoder would get no media."""
    for module in model.components:
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


def _tokenizer(path: str | None) -> OmniTokenizer:
    if path is None:
        return load_omni_tokenizer(None)
    folder = _folder(path)
    found = _json(folder / "config.json")
    ids = {
        placeholder.name: found[key]
        for placeholder in placeholders()
        for key in placeholder.id_keys
        if isinstance(found.get(key), int)
    }
    return load_omni_tokenizer(path, ids=ids, stop_ids=_stop_ids(folder, found))


def _stop_ids(folder: Path, config: Mapping[str, object]) -> list[int]:
    """Return the ids that end an answer, of the first file that says any: generation_config.json, config.json."""
    generation = _json(folder / "generation_config.json")
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]  # text_config, llm_config, ...
    for place in (generation, *parts):
        stops = place.get("eos_token_id")
        stops = stops if isinstance(stops, list) else [stops]
        found = [stop for stop in stops if isinstance(stop, int) and not isinstance(stop, bool)]
        if found:
            return found
    return []


def _template(data: DataConfig) -> ChatTemplate:
    named = data.processor.chat_template
    if named is not None:
        return load_template(named, required=True)
    return load_template(None if data.tokenizer is None else _folder(data.tokenizer))


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
