"""Writes what a Hugging Face folder has beside sizes and weights, from the settings of the run that trained it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from hetjax.config.build_processor import make_processor
from hetjax.config.run_config import TrainConfig
from hetjax.data import load_tokenizer
from hetjax.data.chat import Processor
from hetjax.models.json_values import Json, JsonObject

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
"""Files of a folder that say how text and media become a prompt."""

PLACEHOLDER_KEYS = {
    "image": "image_token_id", "audio": "audio_token_id", "image_start": "img_start_token_id",
    "image_end": "img_end_token_id",
}  # fmt: skip
"""Keys of config.json for the ids of placeholders in a prompt."""


def with_prompts(config_json: Mapping[str, Json], config: TrainConfig) -> tuple[JsonObject, JsonObject | None]:
    """Return (config.json with what the run says of prompts, generation_config.json); None without a language model.

    Ids of tokens go into both, where the vocabulary has them; `max_position_embeddings`, beside the vocabulary, is the
    length of the run's sequences. Raises DataError where the run's tokenizer cannot be read.
    """
    if "vocab_size" not in config_json and "text_config" not in config_json:
        return dict(config_json), None
    processor = make_processor(config.data, config.model)
    ids = _ids(config, processor)
    model = {**ids, "max_position_embeddings": config.data.seq_len}
    made = dict(config_json)
    if "vocab_size" in made:
        made |= model
    else:
        made |= ids
        made["text_config"] = {**made["text_config"], **model}
        if processor is not None:
            found = processor.tokenizer.placeholders
            made |= {key: found[name] for name, key in PLACEHOLDER_KEYS.items() if name in found and key in made}
    return made, {**ids, "do_sample": False}


def _ids(config: TrainConfig, processor: Processor | None) -> JsonObject:
    """The ids of tokens that begin, end and fill a prompt."""
    size = config.model.components["llm"].vocab_size
    if processor is None:
        tokenizer = load_tokenizer(config.data.tokenizer)
        ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
    else:
        stops = [stop for stop in processor.tokenizer.stop_ids if stop < size]
        ids = {"eos_token_id": stops[0] if len(stops) == 1 else stops, "pad_token_id": processor.tokenizer.pad}
    return {key: value for key, value in ids.items() if isinstance(value, list) or value < size}


def write_run_files(config: TrainConfig, generation: Mapping[str, Json], folder: Path) -> None:
    """Write generation_config.json, the files of the run's tokenizer and its settings for images.

    A built-in tokenizer has no files. Settings for images are those of `data.processor`, unless the tokenizer's folder
    has a preprocessor_config.json.
    """
    (folder / "generation_config.json").write_text(json.dumps(dict(generation), indent=2) + "\n")
    if config.data.tokenizer is not None:
        given = Path(config.data.tokenizer)
        beside = given if given.is_dir() else given.parent
        for name in TOKENIZER_FILES:
            if (beside / name).is_file():
                shutil.copyfile(beside / name, folder / name)
        if given.is_file():
            shutil.copyfile(given, folder / "tokenizer.json")
    settings = config.data.processor
    if settings is None:
        return
    if settings.chat_template is not None:
        template = Path(settings.chat_template)
        template = template / "chat_template.jinja" if template.is_dir() else template
        if template.suffix == ".jinja" and template.is_file():
            shutil.copyfile(template, folder / "chat_template.jinja")
    if not (folder / "preprocessor_config.json").exists() and config.model.components.get("vision") is not None:
        said = {"image_mean": list(settings.pixel_mean), "image_std": list(settings.pixel_std)}
        (folder / "preprocessor_config.json").write_text(json.dumps(said, indent=2) + "\n")
