"""Writes what a Hugging Face folder has beside sizes and weights, from the settings of the run that trained it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from hetjax.config.build_loader import make_loader
from hetjax.config.run_config import TrainConfig
from hetjax.data import SampleLoader
from hetjax.data.chat import Tokenizer
from hetjax.data.modalities.config import Square
from hetjax.models.json_values import Json, JsonObject

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
"""Files of a folder that say how text and media become a prompt."""

PLACEHOLDER_KEYS = {
    "image_token_id": "image", "image_token_index": "image", "audio_token_id": "audio",
    "img_start_token_id": "image_start", "img_end_token_id": "image_end",
    "vision_start_token_id": "image_start", "vision_end_token_id": "image_end",
}  # fmt: skip
"""Keys of config.json for the ids of placeholders in a prompt."""

STARTS = ("<|begin_of_text|>", "<s>", "<bos>")
"""Tokens that begin a text, of which a tokenizer has one or none."""


class RunPrompts:
    """How the prompts of a run are made, as a Hugging Face folder says it.

    Raises ConfigError where the run's settings do not fit together, DataError where its tokenizer cannot be read.
    """

    def __init__(self, config: TrainConfig):
        self._data, self._vision = config.data, config.model.components.get("vision")
        self._loader: SampleLoader = make_loader(config.data, config.model)
        self.ids = token_ids(self._loader.tokenizer)

    def added_to(self, config_json: Mapping[str, Json]) -> JsonObject:
        """Return config.json with ids of tokens and, beside the vocabulary, the length of the run's sequences.

        That of a model without a vocabulary stays as it is.
        """
        positions = {"max_position_embeddings": self._data.seq_len}
        if "vocab_size" in config_json:
            return {**config_json, **self.ids, **positions}
        if "text_config" not in config_json:
            return dict(config_json)
        found = self._loader.tokenizer.placeholders
        media = {key: found[name] for key, name in PLACEHOLDER_KEYS.items() if name in found and key in config_json}
        text = {**config_json["text_config"], **self.ids, **positions}
        return {**config_json, **self.ids, **media, "text_config": text}

    def write(self, folder: Path) -> None:
        """Write generation_config.json, the tokenizer with its chat template, and settings for images.

        The tokenizer's files are those of its folder; the built-in one is written as a tokenizer.json.
        """
        _write_json(folder / "generation_config.json", {**self.ids, "do_sample": False})
        if self._data.tokenizer is None:
            (folder / "tokenizer.json").write_text(self._loader.tokenizer.to_json(), encoding="utf-8")
            _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        else:
            _copy_tokenizer(Path(self._data.tokenizer), folder)
        template, settings = folder / "chat_template.jinja", self._data.processor
        if settings.chat_template is not None or not template.exists():
            template.write_text(self._loader.processor.template.source, encoding="utf-8")
        if self._vision is not None and not (folder / "preprocessor_config.json").exists():
            said = {"image_mean": list(settings.pixel_mean), "image_std": list(settings.pixel_std)}
            side = getattr(self._vision, "image_size", None)
            said |= {} if side is None else _square_settings(side, settings.square)
            _write_json(folder / "preprocessor_config.json", said)


def _square_settings(side: int, how: Square) -> JsonObject:
    """Return those of an image processor of transformers that resizes as `hetjax.data.modalities.square_image` does."""
    square: JsonObject = {"height": side, "width": side}
    return {
        "image_processor_type": "LlavaImageProcessor" if how == "pad" else "CLIPImageProcessor",
        "do_resize": True,
        "resample": 3,
        "do_pad": how == "pad",
        "size": {"shortest_edge": side} if how == "crop" else square,
        "do_center_crop": how == "crop",
        "crop_size": square,
    }


def token_ids(tokenizer: Tokenizer) -> JsonObject:
    """Return the ids of tokens that begin a text, end an answer and fill a row, by their keys of config.json."""
    start = next((text for text in STARTS if text in tokenizer.specials), None)
    stops = list(tokenizer.stop_ids)
    return {
        **({} if start is None else {"bos_token_id": tokenizer.encode(start)[0]}),
        "eos_token_id": stops[0] if len(stops) == 1 else stops,
        "pad_token_id": tokenizer.pad,
    }


def _copy_tokenizer(given: Path, folder: Path) -> None:
    beside = given if given.is_dir() else given.parent
    for name in TOKENIZER_FILES:
        if (beside / name).is_file():
            shutil.copyfile(beside / name, folder / name)
    if given.is_file():
        shutil.copyfile(given, folder / "tokenizer.json")


def _write_json(path: Path, content: JsonObject) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
