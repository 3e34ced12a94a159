"""Open the sources that the settings name, each sample in the one dialect."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from hetjax.data.config import DataConfig
from hetjax.data.held_out import HeldOut, Remaining, held_out
from hetjax.data.held_out_sets import HeldOutSet, held_out_sets
from hetjax.data.reading import JoinedSource, Source, files_of, open_files
from hetjax.data.schemas import Columns, Schema, SchemaSource
from hetjax.data.source_config import EvalShare, SourceConfig, train_sources
from hetjax.errors import ConfigError, DataError
from hetjax.models.class_path import function_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSources:
    """The sources of training samples.

    Attributes:
        configs: the settings of each.
        sources: the samples of each, without those that are held out.
        joined: all of them, one source behind the other.
        held_out: those that are held out; None where none are.
    """

    configs: tuple[SourceConfig, ...]
    sources: tuple[Source, ...]
    joined: Source
    held_out: Source | None = None

    @property
    def ends(self) -> tuple[int, ...]:
        """Return where each source ends in `joined`."""
        return tuple(itertools.accumulate(map(len, self.sources)))


def open_source(
    path: str | Path,
    split: str | None = None,
    columns: Columns | None = None,
    ignore: Collection[str] = (),
    *,
    schema: Schema | None = None,
    allow_outside: bool = False,
) -> Source:
    """Open a file, a folder or a glob, its samples in the one dialect, without the keys of `ignore`.

    `schema` makes of each sample one of a schema that is known. Unless `allow_outside`, samples may name no files but
    those in the folder that is given, or that a file is in.
    Raises DataError where it cannot be read or has no sample.
    """
    given = Path(path).expanduser()

    def root(source: Source) -> Path | None:
        return None if allow_outside else given if given.is_dir() else source.folder

    files = open_files(path, split)
    return _joined([SchemaSource(file, columns, ignore, root(file), schema) for file in files], str(path))


def open_train(data: DataConfig) -> TrainSources:
    """Open what `data.train` names, without the samples that `data.eval` takes of it. Raises DataError."""
    configs = train_sources(data.train)
    sources = [_open(config, data) for config in configs]
    share = next((each.samples for each in held_out_sets(data.eval) if isinstance(each.samples, EvalShare)), None)
    held = None
    if share is not None:
        _check_apart(configs)
        chosen = [held_out(len(source), share.share) for source in sources]
        held = _joined(list(map(HeldOut, sources, chosen)), _names(configs))
        sources = list(map(Remaining, sources, chosen))
    for config, source in zip(configs, sources, strict=True):
        if not len(source):
            raise DataError(f"dataset '{config.path}' has one sample, which data.eval holds out; add samples")
    return TrainSources(
        configs=configs, sources=tuple(sources), joined=_joined(sources, _names(configs)), held_out=held
    )


class OpenedSet(NamedTuple):
    """A held-out set by its settings, and its samples."""

    settings: HeldOutSet
    source: Source


def open_eval(data: DataConfig, trained: Callable[[], TrainSources]) -> tuple[OpenedSet, ...]:
    """Open the held-out sets that `data.eval` names, each with its samples; a share is of those that `trained` opens.

    Raises DataError; or ConfigError where it names nothing.
    """
    sets = held_out_sets(data.eval)
    if not sets:
        raise ConfigError("data.eval is null, so there is nothing to evaluate on; give a dataset")
    return tuple(OpenedSet(each, _open_set(each, data, trained)) for each in sets)


def _open_set(held: HeldOutSet, data: DataConfig, trained: Callable[[], TrainSources]) -> Source:
    if isinstance(held.samples, EvalShare):
        return trained().held_out
    return _joined([_open(config, data) for config in held.samples], _names(held.samples))


def _open(config: SourceConfig, data: DataConfig) -> Source:
    schema = None if config.schema is None else function_of(config.schema, what=f"the schema of '{config.label}'")
    others = {"schema": schema, "allow_outside": data.allow_outside}
    return open_source(config.path, config.split, config.columns, data.ignore_keys, **others)


def _check_apart(configs: tuple[SourceConfig, ...]) -> None:
    """Raise ConfigError where sources share some files and not others: what one holds out another would train on."""
    files = [{file.resolve() for file in files_of(config.path, config.split)} for config in configs]
    for (one, own), (other, others) in itertools.combinations(zip(configs, files, strict=True), 2):
        if own & others and own != others:
            raise ConfigError(
                f"data.train: the sources '{one.label}' and '{other.label}' share {min(own & others)}, but not all of "
                "their files, so that a share of one would be held out and trained on in the other; name each file in "
                "one source, or give data.eval files of its own"
            )


def _joined(sources: list[Source], name: str) -> Source:
    return sources[0] if len(sources) == 1 else JoinedSource(sources, path=Path(name))


def _names(configs: tuple[SourceConfig, ...]) -> str:
    return ", ".join(config.label for config in configs)
