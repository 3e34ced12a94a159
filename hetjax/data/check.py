"""Check a dataset cheaply, before any device work starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from hetjax.data.bad_samples import BadSample, readable, tried
from hetjax.data.media import check_regular, printable
from hetjax.data.reading import Source
from hetjax.data.sample_loader import SampleLoader
from hetjax.errors import DataError

_PARSED = 10_000  # samples that are parsed; a pass over all of a large dataset would take hours
_BLOCKS = 16  # blocks of samples that they are taken from, where a block is read as a whole
_LOADED = 4  # samples that are rendered and decoded
_SHOWN = 3  # bad samples that an error spells out


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """Counts of a dataset: `samples` samples naming `media` files.

    `bad` has "file:line: reason" for each bad line found, those of `missing` (or unreadable) files among them.
    """

    samples: int
    media: int
    missing: tuple[str, ...]
    bad: tuple[str, ...]


def check_dataset(source: Source, loader: SampleLoader, *, held_out: bool = False) -> DatasetSummary:
    """Parse the samples of a source, look for every file of media, and render and decode a few samples.

    Of more than 10,000 samples so many are parsed, spread over all. Those that are `held_out` are tried as questions
    with their answers, as an evaluation takes them.

    Raises:
        DataError: more than `config.max_bad_share` of the lines are malformed or name a missing file; or none of the
            samples tried can be rendered and decoded.
    """
    config, media, missing = loader.config, 0, []
    bad: dict[int, str] = {}
    indices = _parsed(source)
    for index in indices:
        chat = tried(lambda index=index: loader.parse(source, index), source, index)
        if isinstance(chat, BadSample):
            bad[index] = chat.reason
            continue
        media += len(chat.files)
        for file in chat.files:
            try:
                check_regular(file, "file")
            except DataError as error:
                missing.append(printable(str(file)))
                bad.setdefault(index, readable(f"{chat.where}: {error}"))
    allowed = min(int(config.max_bad_share * len(indices)), len(indices) - 1)
    if len(bad) > allowed:
        raise DataError(
            f"dataset '{source.path}': {len(bad)} of {len(indices)} samples are bad, at most {allowed} may be "
            f"(max_bad_share {config.max_bad_share:g}); repair or remove them. {_shown(list(bad.values()))}"
        )
    load = loader.load_prompt if held_out else loader.load
    failed = _try_some(source, load, [index for index in indices if index not in bad])
    return DatasetSummary(samples=len(source), media=media, missing=tuple(missing), bad=(*bad.values(), *failed))


def _try_some(source: Source, load: Callable[[Source, int], object], indices: list[int]) -> list[str]:
    """Load a few samples spread over `indices`, and return the reasons of those that fail."""
    chosen = _spread(indices, _LOADED)
    loaded = [tried(lambda index=index: load(source, index), source, index) for index in chosen]
    failed = [each.reason for each in loaded if isinstance(each, BadSample)]
    if len(failed) == len(chosen):
        raise DataError(
            f"dataset '{source.path}': none of the {len(chosen)} samples tried can be used. {_shown(failed)}"
        )
    return failed


def _parsed(source: Source) -> list[int]:
    """Return the samples to parse, spread over a source; of blocks that are read as a whole, those of a few."""
    blocks = getattr(source, "blocks", None)
    if blocks is None or len(source) <= _PARSED:
        return _spread(range(len(source)), _PARSED)
    ends = np.cumsum(blocks)
    chosen = _spread(np.flatnonzero(blocks), _BLOCKS)
    each = -(-_PARSED // len(chosen))
    return [index for block in chosen for index in _spread(range(ends[block] - blocks[block], ends[block]), each)]


def _spread(indices: Sequence[int], most: int) -> list[int]:
    """Return at most so many of some indices, from the first to the last."""
    return sorted({int(indices[int(i)]) for i in np.linspace(0, len(indices) - 1, min(most, len(indices)))})


def _shown(reasons: list[str]) -> str:
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    return "First: " + "; ".join(reasons[:_SHOWN]) + more
