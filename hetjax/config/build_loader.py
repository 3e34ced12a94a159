"""Build what loads the samples of a run, fitted to its model, with its tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from hetjax.config.model_config import ModelConfig
from hetjax.data import DataConfig, SampleLoader
from hetjax.data.chat import (
    ChatTemplate,
    Processor,
    RowCapacity,
    Tokenizer,
    end_mark,
    ending_of,
    load_template,
    load_tokenizer,
)
from hetjax.data.chat.template import BUILT_IN_MARKS, DEFAULT_TEMPLATE
from hetjax.data.modalities import placeholders
from hetjax.errors import ConfigError, DataError
from hetjax.models.class_path import call_class_path


def row_capacity(data: DataConfig, model: ModelConfig) -> RowCapacity:
    """Return the capacity of a row of a batch. Raises ConfigError where settings and encoders do not fit."""
    capacity = RowCapacity.of(data.processor, data.seq_len, model.components)
    _check_encoders_have_inputs(capacity, model)
    return capacity


def make_loader(data: DataConfig, model: ModelConfig) -> SampleLoader:
    """Return what loads the samples of a run, with its tokenizer and chat template; no source is opened yet.

    Beside a tokenizer.json, a config.json says which ids stand for encoder tokens that have no text, and a
    generation_config.json or config.json which ids end an answer, beside the end mark of the template. The template is
    that of `processor.chat_template`, else of the tokenizer's folder, else the built-in one.

    Raises ConfigError where the parts do not fit together or the language model has fewer embeddings than the tokenizer
    tokens, DataError where a file cannot be read.
    """
    row_capacity(data, model)
    tokenizer, template = _tokenizer(data.tokenizer), _template(data)
    _check_built_in_template(template, tokenizer, data.tokenizer)
    _check_vocabulary(tokenizer, data, model)
    end = end_mark(template, **data.processor.template_options)
    learned = [token for token in tokenizer.encode(end) if token in tokenizer.special_ids][:1]
    own = data.own_processor
    make = Processor if own is None else partial(call_class_path, own.settings(), what="data.own_processor")
    processor = make(
        data.processor,
        tokenizer.stopping_at(learned),  # what ends an answer in training ends it where one is generated
        template,
        seq_len=data.seq_len,
        encoders=model.components,
        ending=ending_of(template, tokenizer.stop_texts, **data.processor.template_options),
    )
    if not isinstance(processor, Processor):
        raise ConfigError(f"data.own_processor: {own.class_path} does not inherit from hetjax.data.chat.Processor")
    return SampleLoader(data, processor)


def check_blank(blank: Sequence[str], data: DataConfig, model: ModelConfig) -> None:
    """Raise ConfigError where `eval.blank` names a modality that the run does not take."""
    capacity = row_capacity(data, model)
    taken = [name for name, modality in capacity.modalities.items() if capacity.takes(modality)]
    for name in blank:
        if name not in taken:
            raise ConfigError(
                f"eval.blank names {name}, but the run takes {', '.join(taken) or 'text alone'}; leave it out"
            )


def _check_vocabulary(tokenizer: Tokenizer, data: DataConfig, model: ModelConfig) -> None:
    have, need = model.components["llm"].vocab_size, tokenizer.vocab_size
    if have < need:
        raise ConfigError(
            f"model.llm.vocab_size is {have}, but the tokenizer ({data.tokenizer or 'built in'}) has {need} "
            f"tokens; set it to {need} or more"
        )


def _check_built_in_template(template: ChatTemplate, tokenizer: Tokenizer, path: str | None) -> None:
    """Raise ConfigError where the built-in template is taken for want of another, but the tokenizer lacks its marks."""
    lacking = [mark for mark in BUILT_IN_MARKS if mark not in tokenizer.specials]
    if template.source == DEFAULT_TEMPLATE and lacking:
        raise ConfigError(
            f"there is no chat template beside the tokenizer '{path}', and it lacks {' and '.join(lacking)}, which the "
            "built-in template writes; give data.processor.chat_template, a .jinja file or a folder that has one"
        )


def _check_encoders_have_inputs(capacity: RowCapacity, model: ModelConfig) -> None:
    """Raise ConfigError where an encoder would get no media."""
    for module in model.components:
        encoder = model.components[module]
        modalities = [
            each for each in capacity.modalities.values() if each.placeholder.module == module and each.accepts(encoder)
        ]
        if not modalities or any(map(capacity.takes, modalities)):
            continue
        settings = [each.resources[0].setting.removeprefix("processor.") for each in modalities]
        are, which = ("is", "it") if len(settings) == 1 else ("are", "one of them")
        an = "an" if module[0] in "aeiou" else "a"
        raise ConfigError(
            f"data.processor.{' and '.join(settings)} {are} 0, but the model has {an} {module} encoder; raise {which}, "
            f"or leave the encoder out (model.without: [{module}])"
        )


def _tokenizer(path: str | None) -> Tokenizer:
    if path is None:
        return load_tokenizer(None)
    folder = _folder(path)
    found = _json(folder / "config.json")
    ids = {
        placeholder.name: found[key]
        for placeholder in placeholders()
        for key in placeholder.id_keys
        if isinstance(found.get(key), int)
    }
    return load_tokenizer(path, ids=ids, stop_ids=_stop_ids(folder, found))


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
