"""hetjax data convert: samples of any source as shards with their media inside, tokenized if wished."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import yaml
from rich.progress import track

from hetjax.config.build_loader import make_loader
from hetjax.config.run_config import TrainConfig
from hetjax.data import SampleLoader, Source, SourceConfig, open_source
from hetjax.data.atomic_folder import write_whole
from hetjax.data.bad_samples import BadSample, BadTally, tried
from hetjax.data.chat import parse_line
from hetjax.data.chat.pretokenized import KEY
from hetjax.data.media import VideoSampling, read_audio, read_image, read_video
from hetjax.data.media.media_file import Source as MediaSource
from hetjax.data.reading import Line
from hetjax.errors import ConfigError, DataError
from hetjax.tools.data.embedded import Embedder, Member, as_json, with_names
from hetjax.tools.data.run_samples import ahead
from hetjax.tools.data.shards import Format, ShardWriter
from hetjax.tools.outcome import Json, Outcome, stderr
from hetjax.tools.tables import NumberTable

T = TypeVar("T")

_READERS: Mapping[str, Callable[[MediaSource], object]] = {
    "image": read_image,
    "audio": read_audio,
    "video": lambda source: read_video(source, VideoSampling()),
}


class _Written(NamedTuple):
    """A sample as it goes to a shard."""

    text: bytes
    media: Sequence[Member]


class _Part(NamedTuple):
    """One source, with what makes its samples ready."""

    config: SourceConfig
    source: Source
    make: Callable[[int], _Written]


def convert_data(
    *,
    to: str,
    path: str | None = None,
    config: TrainConfig | None = None,
    source: Literal["train", "eval"] = "train",
    format: Format = "arrayrecord",
    pretokenized: bool = False,
    per_shard: int = 10_000,
    max_bad_share: float | None = None,
    allow_outside: bool = False,
) -> Outcome:
    """Write the samples of a dataset as shards of ArrayRecord or WebDataset, with the bytes of their media inside.

    What they are read from is what a run names, or --path. Every sample is made ready as training would, a held-out one
    as an evaluation would, or, of a path, its media are decoded; one that cannot be used is named and left out. The
    folder appears when all of it is written.

    Args:
        to: Folder that is made; of a run with several sources it has a folder for each.
        path: Dataset to convert, a file, a folder or a glob, where no run is given.
        config: The settings of a run, whose data are converted.
        source: Which data of the run: train (without what data.eval holds out) or eval.
        format: What is written: arrayrecord or webdataset.
        pretokenized: Write tokens, what the loss counts, and places of media, as the run would make them; another
            tokenizer, chat template or other sizes of media are an error then when the samples are read.
        per_shard: Samples of a shard.
        max_bad_share: Largest share of bad samples that is left out; null for data.max_bad_share of the run, or 0.01.
        allow_outside: Whether samples of --path may name files outside of its folder, whose content is then put into
            the shards; a run has data.allow_outside for that.
    """
    if (path is None) == (config is None):
        raise ConfigError("give --path, or --config for the data that a run names; one of them")
    if pretokenized and config is None:
        raise ConfigError("--pretokenized needs the tokenizer and the sizes of a run; give --config in place of --path")
    if pretokenized and source == "eval":
        raise ConfigError(
            "--pretokenized stores samples as training takes them, with no question to answer, so that an evaluation "
            "cannot read them; convert held-out data without it"
        )
    if allow_outside and config is not None:
        raise ConfigError("--allow_outside is for --path; with --config set data.allow_outside")
    if per_shard < 1:
        raise ConfigError(f"per_shard is {per_shard}; give 1 or more")
    loader = None if config is None else make_loader(config.data, config.model)
    share = max_bad_share if max_bad_share is not None else 0.01 if loader is None else loader.config.max_bad_share
    parts = _of_path(path, allow_outside) if loader is None else _of_run(loader, source, pretokenized)
    folders = [""] if len(parts) == 1 else [_folder_name(i, part.config) for i, part in enumerate(parts)]
    workers = 4 if loader is None else loader.config.workers
    bad: list[str] = []
    rows: list[dict[str, Json]] = []

    def write(partial: Path) -> None:
        for folder, part in zip(folders, parts, strict=True):
            own = partial / folder
            own.mkdir(exist_ok=True)
            rows.append(_write(own, part, bad, format=format, per_shard=per_shard, share=share, workers=workers))

    target = write_whole(to, write, what="converted samples")
    settings = [
        {"path": str(target / folder), **_kept(part.config)} for folder, part in zip(folders, parts, strict=True)
    ]
    numbers = {"to": str(target), "sources": rows, "bad": bad, source: settings}
    return Outcome(
        numbers=numbers, shown=(*(f"bad sample: {each}" for each in bad), _table(rows), _advice(source, settings))
    )


def _of_path(path: str, allow_outside: bool) -> list[_Part]:
    source = open_source(path, allow_outside=allow_outside)

    def make(index: int) -> _Written:
        line = source[index]
        folder = line.folder or source.folder
        chat = parse_line(line.text, where=line.where, folder=folder)
        for part in chat.media:
            if part.kind in _READERS:
                _named(line.where, lambda part=part: _READERS[part.kind](part.value))
        return _embedded(source, index)

    return [_Part(SourceConfig(path=path), source, make)]


def _named(where: str, do: Callable[[], T]) -> T:
    """Return what `do` does; what it finds wrong is named by the sample. Raises DataError."""
    try:
        return do()
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(where) else f"{where}: {text}") from error


def _of_run(loader: SampleLoader, which: str, pretokenized: bool) -> list[_Part]:
    if which == "train":
        trained = loader.trained
        opened = list(zip(trained.configs, trained.sources, strict=True))
    else:
        opened = [(SourceConfig(path=str(loader.held_out.path)), loader.held_out)]
    make = _tokenized if pretokenized else _checked if which == "train" else _asked
    return [
        _Part(config, source, lambda index, source=source: make(loader, source, index)) for config, source in opened
    ]


def _checked(loader: SampleLoader, source: Source, index: int) -> _Written:
    loader.load(source, index)
    return _embedded(source, index)


def _asked(loader: SampleLoader, source: Source, index: int) -> _Written:
    loader.load_prompt(source, index)
    return _embedded(source, index)


def _embedded(source: Source, index: int) -> _Written:
    line = source[index]
    record = line.text if isinstance(line.text, Mapping) else json.loads(line.text)
    embedder = Embedder(line.folder or source.folder)
    if KEY in record:  # tokenized already
        stored = dict(record[KEY])
        stored["media"] = [[kind, embedder.name(kind, name), places] for kind, name, places in stored["media"]]
        return _Written(as_json({**_about(line), KEY: stored}), embedder.members)
    named = _named(line.where, lambda: with_names(record, embedder.name))
    return _Written(as_json({**_about(line), **named}), embedder.members)


def _tokenized(loader: SampleLoader, source: Source, index: int) -> _Written:
    chat, line = loader.parse(source, index), source[index]
    made = loader.processor.process(chat, training=True)
    embedder = Embedder(line.folder or source.folder)
    names = [embedder.held(part.kind, part.value) for part in chat.media]
    stored = loader.processor.pretokenized(chat, made, names).as_json()
    return _Written(as_json({**_about(line), KEY: stored}), embedder.members)


def _about(line: Line) -> dict[str, Json]:
    """Return what a sample says about itself, such as its task; without a "source" its name is that."""
    about = {
        key: value if value is None or isinstance(value, str | int | float) else str(value)
        for key, value in line.about.items()
    }
    return {"source": line.where, **about}


def _write(
    folder: Path, part: _Part, bad: list[str], *, format: Format, per_shard: int, share: float, workers: int
) -> dict[str, Json]:
    """Write the shards of one source. Raises DataError where too many of its samples are bad."""
    source, writer = part.source, ShardWriter(folder, format, per_shard=per_shard)
    tally = BadTally(path=source.path, samples=len(source), max_share=share)
    found = ahead(lambda index: tried(lambda: part.make(index), source, index), range(len(source)), workers=workers)
    for each in track(found, part.config.label, len(source), console=stderr(), disable=not stderr().is_terminal):
        if isinstance(each, BadSample):
            bad.append(each.reason)
            tally.skip(each.reason)
        else:
            tally.good()
            writer.write(each.text, each.media)
    writer.close()
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return {
        "source": part.config.label,
        "samples": writer.samples,
        "bad": tally.bad,
        "shards": writer.shards,
        "bytes": size,
    }


def _folder_name(number: int, config: SourceConfig) -> str:
    return f"{number}-{re.sub(r'[^A-Za-z0-9.-]+', '-', config.name or Path(config.path).stem).strip('-.') or 'source'}"


def _kept(config: SourceConfig) -> dict[str, Json]:
    """Return the settings of a source that its shards keep."""
    kept: dict[str, Json] = {"name": config.label}
    if config.weight is not None:
        kept["weight"] = config.weight
    if config.repeat != 1:
        kept["repeat"] = config.repeat
    return kept


def _table(rows: Sequence[Mapping[str, Json]]) -> NumberTable:
    return NumberTable(
        texts=("source",),
        numbers=("samples", "bad", "shards", "MB"),
        rows=[
            (
                each["source"],
                f"{each['samples']:,}",
                str(each["bad"]),
                str(each["shards"]),
                f"{each['bytes'] / 1e6:,.1f}",
            )
            for each in rows
        ],
    )


def _advice(source: str, settings: Sequence[Mapping[str, Json]]) -> str:
    text = yaml.safe_dump({"data": {source: list(settings)}}, sort_keys=False, default_flow_style=None, width=1000)
    return f"to read them:\n{text.rstrip()}"
