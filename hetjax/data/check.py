"""Check a dataset cheaply, before any device work starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from hetjax.data.bad_samples import readable, reason_of
from hetjax.data.chat import Processor
from hetjax.data.config import DataConfig
from hetjax.data.loading import Loader
from hetjax.data.media import check_regular, printable
from hetjax.data.omni import OmniLoader
from hetjax.data.reading import Source
from hetjax.data.sources import open_source
from hetjax.data.tokenizer import Tokenizer
from hetjax.errors import DataError

_PARSED = 10_000  # samples that are parsed; a pass over all of a large dataset would take hours
_BLOCKS = 16  # blocks of samples that they are taken from, where a block is read as a whole
_LOADED = 4  # samples that are rendered and decoded
_SHOWN = 3  # bad samples that an error spells out


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """Counts of a dataset: `samples` samples naming `images` files of media.

    `bad` has "file:line: reason" for each bad line found, those of `missing` (or unreadable) files among them.
    """

    samples: int
    images: int
    missing: tuple[str, ...]
    bad: tuple[str, ...]


def check_dataset(
    dataset: str | Source,
    config: DataConfig,
    tokenizer: Tokenizer,
    tokens_per_image: int,
    processor: Processor | None = None,
) -> DatasetSummary:
    """Parse the samples of a dataset, look for every file of media, and render and decode a few samples.

    `dataset` is a source or the path of one. Of more than 10,000 samples so many are parsed, spread over all.

    Raises:
        DataError: the file is missing or empty; more than `config.max_bad_share` of its lines are
            malformed or name a missing image; or none of the samples tried can be rendered and decoded.
    """
    source = open_source(dataset, ignore=config.ignore_keys) if isinstance(dataset, str) else dataset
    if processor is not None:
        loader = OmniLoader(source=source, processor=processor, ignore_keys=config.ignore_keys)
    else:
        loader = Loader(source=source, config=config, tokenizer=tokenizer, tokens_per_image=tokens_per_image)
    images, missing = 0, []
    bad: dict[int, str] = {}
    indices = _parsed(source)
    for index in indices:
        try:
            conversation = loader.parse(index)
        except Exception as error:
            bad[index] = reason_of(error, source, index)
            continue
        images += len(conversation.files)
        for file in conversation.files:
            try:
                check_regular(file, "image" if processor is None else "file")
            except DataError as error:
                missing.append(printable(str(file)))
                bad.setdefault(index, readable(f"{conversation.where}: {error}"))
    allowed = min(int(config.max_bad_share * len(indices)), len(indices) - 1)
    if len(bad) > allowed:
        raise DataError(
            f"dataset '{source.path}': {len(bad)} of {len(indices)} samples are bad, at most {allowed} may be "
            f"(max_bad_share {config.max_bad_share:g}); repair or remove them. {_shown(list(bad.values()))}"
        )
    failed = _try_some(loader, [index for index in indices if index not in bad])
    return DatasetSummary(samples=len(source), images=images, missing=tuple(missing), bad=(*bad.values(), *failed))


def _try_some(loader: Loader | OmniLoader, indices: list[int]) -> list[str]:
    """Load a few samples spread over `indices`, and return the reasons of those that fail."""
    tried = _spread(indices, _LOADED)
    failed = []
    for index in tried:
        try:
            loader.load(index)
        except Exception as error:
            failed.append(reason_of(error, loader.source, index))
    if len(failed) == len(tried):
        raise DataError(
            f"dataset '{loader.source.path}': none of the {len(tried)} samples tried can be used. {_shown(failed)}"
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
