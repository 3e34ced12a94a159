"""The settings of where samples come from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hetjax.data.schemas import Columns, check_columns, likely
from hetjax.errors import ConfigError
from hetjax.models.class_path import function_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of samples.

    Args:
        path: A file, a folder or a glob; its formats are told apart by suffix.
        name: What checkpoints call it, by which a run goes on where it was; null for the path, with the split.
        weight: Share of the samples that are drawn from it, against the weights of the other sources; 0 draws none any
            more. Null for as many as it has: then an epoch has each of its samples `repeat` times.
        repeat: How often an epoch has each of its samples, where there are no weights; 0.5 is every other one.
        split: Of a folder or a glob the files of this name, of a JSON object the list of this name.
        columns: Which column each key of a sample is taken from, {messages: conversations}; null to tell by the keys.
        schema: A function of your own, {class_path: my_file.as_chat, init_args: {}}, that makes of each sample, a
            mapping, one of a schema that is known; null for none.
    """

    path: str
    name: str | None = None
    weight: float | None = None
    repeat: float = 1
    split: str | None = None
    columns: Columns | None = None
    schema: Mapping[str, Any] | None = None

    @property
    def label(self) -> str:
        """Return what checkpoints call the source."""
        return self.name or (self.path if self.split is None else f"{self.path} ({self.split})")

    @classmethod
    def of(cls, given: object, where: str) -> SourceConfig:
        """Return the settings that a YAML gives: a path, or a mapping. Raises ConfigError, which `where` opens."""
        if isinstance(given, SourceConfig):
            return given
        given = plain_settings({"path": given} if isinstance(given, str) else given)
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where} must be a path or settings of a source, as {{path: a.jsonl}}, not {given!r}")
        names = [field.name for field in dataclasses.fields(cls)]
        for key in given:
            if key not in names:
                raise ConfigError(f"{where} has no setting '{key}'{likely(str(key), names)}; it has {', '.join(names)}")
        _check(given, where)
        return cls(**given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalShare:
    """Held-out samples taken from those of training, which then lacks them: the same ones whatever the seed.

    Args:
        share: Part of each source's samples, between 0 and 1; at least one of each.
    """

    share: float


def plain_settings(given: object) -> object:
    """Return settings in dicts and lists: a parser may hold {class_path, init_args} in an object of its own."""
    if hasattr(given, "as_dict"):
        given = given.as_dict()
    if isinstance(given, Mapping):
        return {key: plain_settings(value) for key, value in given.items()}
    return [plain_settings(value) for value in given] if isinstance(given, list) else given


def train_sources(given: object) -> tuple[SourceConfig, ...]:
    """Return the sources that `data.train` names. Raises ConfigError."""
    sources = _sources(given, "data.train")
    weighted = [source for source in sources if source.weight is not None]
    if weighted and len(weighted) < len(sources):
        lacking = next(source for source in sources if source.weight is None)
        raise ConfigError(
            f"data.train: source '{lacking.label}' has no weight, but '{weighted[0].label}' has; give all of them one, "
            "or none"
        )
    for source in weighted:
        if source.repeat != 1:
            raise ConfigError(f"data.train: source '{source.label}' has a weight and a repeat; give one of them")
    if weighted and not any(source.weight for source in weighted):
        raise ConfigError("data.train: all weights are 0; give one source a weight above 0")
    return sources


def eval_source_or_share(given: object, where: str) -> tuple[SourceConfig, ...] | EvalShare:
    """Return what one held-out set consists of. Raises ConfigError, which `where` opens."""
    if isinstance(given, EvalShare):
        return given
    if isinstance(given, Mapping) and "share" in given:
        share = given["share"]
        if set(given) != {"share"} or not _is_number(share) or not 0 < share < 1:
            raise ConfigError(f"{where} is {dict(given)}; give {{share: 0.01}}, a number between 0 and 1, alone")
        return EvalShare(share=float(share))
    sources = _sources(given, where)
    for source in sources:
        if source.weight is not None or source.repeat != 1:
            raise ConfigError(
                f"{where}: source '{source.label}' has a weight or a repeat, but evaluation reads each sample once; "
                "leave them out"
            )
    return sources


def _sources(given: object, where: str) -> tuple[SourceConfig, ...]:
    """Return the sources of a path, of the settings of one, or of a list of these."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        if not given:
            raise ConfigError(f"{where} is an empty list; give a path, or a list of sources")
        sources = tuple(SourceConfig.of(each, f"{where}[{i}]") for i, each in enumerate(given))
    else:
        sources = (SourceConfig.of(given, where),)
    labels = [source.label for source in sources]
    for i, label in enumerate(labels):
        if label in labels[:i]:
            raise ConfigError(f"{where} has '{label}' twice; give one a `name`, or raise its `repeat` or `weight`")
    return sources


def _check(given: Mapping[str, Any], where: str) -> None:
    if not isinstance(given.get("path"), str) or not given["path"]:
        raise ConfigError(f"{where} needs a path, a file, a folder or a glob, not {given.get('path')!r}")
    for key in ("name", "split"):
        if given.get(key) is not None and not (isinstance(given[key], str) and given[key]):
            raise ConfigError(f"{where}.{key} is {given[key]!r}; give a text")
    if given.get("weight") is not None and not (_is_number(given["weight"]) and given["weight"] >= 0):
        raise ConfigError(f"{where}.weight is {given['weight']!r}; give a number of 0 or more")
    if "repeat" in given and not (_is_number(given["repeat"]) and given["repeat"] > 0):
        raise ConfigError(f"{where}.repeat is {given['repeat']!r}; give a number above 0")
    if given.get("columns") is not None:
        check_columns(given["columns"], f"{where}.columns")
    if given.get("schema") is not None:
        function_of(given["schema"], what=f"{where}.schema")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
