"""Load the samples of a run one by one, as training would."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import grain

from hetjax.config.build_loader import make_loader
from hetjax.config.run_config import TrainConfig
from hetjax.data import DataConfig, SampleLoader, Source
from hetjax.data.bad_samples import BadSample, tried
from hetjax.data.chat import Sample
from hetjax.data.order import SampleOrder
from hetjax.data.prefetch import read_ahead
from hetjax.data.rows.row_capacity import UNLIMITED, unlimited
from hetjax.errors import ConfigError

T = TypeVar("T")

_READ_AHEAD = 16  # samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSamples:
    """The samples of a run.

    Attributes:
        loader: makes them.
        source: all of them, those of several sources one behind the other.
        drawn: how many samples an epoch draws.
        order: gives the sample of each position of the stream that training draws.
    """

    loader: SampleLoader
    source: Source
    drawn: int
    order: Callable[[int], int]

    def some(self, most: int) -> list[int]:
        """Return the numbers of the samples that an epoch draws first, or of all that it draws if it is no longer."""
        return [self.order(position) for position in range(min(most, self.drawn))]

    def load(self, number: int) -> Sample | BadSample:
        """Return the sample of a number, or why it cannot be used."""
        return tried(lambda: self.loader.load(self.source, number), self.source, number)

    def loaded(self, numbers: Sequence[int]) -> Iterator[Sample | BadSample]:
        """Yield the samples of these numbers, in their order; threads load a few ahead."""
        return ahead(self.load, numbers, workers=self.loader.config.workers)


def ahead(load: Callable[[int], T], numbers: Sequence[int], *, workers: int) -> Iterator[T]:
    """Yield what `load` loads of each number, in their order; threads load a few ahead."""
    places = grain.MapDataset.range(len(numbers))
    return read_ahead(places, lambda place: load(numbers[place]), workers=workers, batch_size=_READ_AHEAD)


def open_samples(config: TrainConfig, source: str = "train", *, measured: bool = False) -> RunSamples:
    """Open what a run trains on, or its held-out data ("eval"), whose samples are made as in training.

    With `measured` a sample may be of any length and have any number of media, each of the size that it has in the run.

    Raises:
        ConfigError: there are no held-out data.
        DataError: they cannot be read.
    """
    loader = make_loader(config.data, config.model)
    if measured:
        loader = make_loader(_without_limits(config, loader), config.model)
    if source == "train":
        order = SampleOrder(loader.trained, shuffle=config.data.shuffle, seed=config.data.seed, epochs=1)
        return RunSamples(loader=loader, source=loader.trained.joined, drawn=order.epoch, order=order.__getitem__)
    if config.data.eval is None:
        raise ConfigError("data.eval is null, so there is no held-out data; give --source train")
    return RunSamples(loader=loader, source=loader.held_out, drawn=len(loader.held_out), order=int)


def _without_limits(config: TrainConfig, loader: SampleLoader) -> DataConfig:
    """Return the settings with rows that any sample fits into."""
    data, capacity = config.data, loader.processor.capacity
    taken = [name for name, modality in capacity.modalities.items() if capacity.takes(modality)]
    processor = unlimited(data.processor, taken, loader.processor.encoders)
    context = data.processor.context or data.seq_len
    return dataclasses.replace(data, seq_len=UNLIMITED, processor=dataclasses.replace(processor, context=context))
