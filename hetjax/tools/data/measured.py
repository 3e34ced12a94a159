"""How long the samples of a run are, and how many encoder inputs they have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64
from rich.progress import track

from hetjax.config.run_config import TrainConfig
from hetjax.data.bad_samples import BadSample
from hetjax.data.chat import RowUse
from hetjax.tools.data.run_samples import RunSamples, open_samples
from hetjax.tools.outcome import Json, stderr

# M samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Amount:
    """What samples take of one thing of which a row of the batch has a fixed amount.

    Attributes:
        words: what it is.
        setting: what sets the amount in a row.
        has: the amount that a row has by the settings of the run.
        step: what a suggestion is a multiple of.
        taken: by each sample.
    """

    words: str
    setting: str
    has: int
    step: int
    taken: Int64[np.ndarray, " M"]

    def summary(self) -> dict[str, Json]:
        """Return what is printed: mean, quantiles, and the part of the samples that take some."""
        quantiles = dict(zip(("p50", "p90", "p99", "max"), np.quantile(self.taken, (0.5, 0.9, 0.99, 1)), strict=True))
        return {
            "setting": self.setting,
            "has": self.has,
            "some": float(np.mean(self.taken > 0)),
            "mean": float(np.mean(self.taken)),
            **{name: int(np.ceil(value)) for name, value in quantiles.items()},
        }

    def up(self, value: float) -> int:
        """Return a value rounded up to the next multiple of `step`."""
        return max(self.step, int(-(-np.ceil(value) // self.step) * self.step))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What some samples of a run take.

    Attributes:
        amounts: by name; "tokens" first, and only what some sample takes.
        samples: that were measured, with those that cannot be used.
        of: samples that an epoch draws.
        bad: why samples cannot be used, each with its name.
        uses: what each sample takes that can be used, in the order in which they are drawn.
    """

    amounts: Mapping[str, Amount]
    samples: int
    of: int
    bad: Sequence[str]
    uses: Sequence[RowUse]


def measure(config: TrainConfig, source: str, samples: int, *, whole: bool = True) -> Measured:
    """Load the samples that an epoch draws first, and return what they take.

    If `whole`, whatever the settings have room for; else samples that do not fit into a row cannot be used.
    """
    run = open_samples(config, source, measured=whole)
    numbers = run.some(samples)
    uses, bad = [], []
    loaded = track(run.loaded(numbers), "measuring", len(numbers), console=stderr(), disable=not stderr().is_terminal)
    for sample in loaded:
        if isinstance(sample, BadSample):
            bad.append(sample.reason)
        else:
            uses.append(sample.use)
    known = _known(config, run)
    taken = {
        name: np.asarray([use.tokens if name == "tokens" else use.media[name] for use in uses], np.int64)
        for name in known
    }
    amounts = {
        name: dataclasses.replace(known[name], taken=values)
        for name, values in taken.items()
        if name == "tokens" or values.any()
    }
    return Measured(amounts=amounts if uses else {}, samples=len(numbers), of=run.drawn, bad=bad, uses=uses)


def _known(config: TrainConfig, run: RunSamples) -> dict[str, Amount]:
    """Return all amounts that a run's samples may take, as its settings have them."""
    data, none = config.data, np.zeros(0, np.int64)
    step = 64 if data.seq_len >= 512 else 8
    known = {"tokens": Amount(words="tokens", setting="seq_len", has=data.seq_len, step=step, taken=none)}
    for modality in run.loader.processor.capacity.modalities.values():
        resource = modality.resources[0]  # what else a medium takes follows from it
        has = getattr(data.processor, resource.setting.removeprefix("processor."), None)
        known[resource.name] = Amount(
            words=resource.words,
            setting=resource.setting,
            has=has if isinstance(has, int) else 0,
            step=data.processor.resolution.merge**2 if resource.name.endswith("_rows") else 1,
            taken=none,
        )
    return known
