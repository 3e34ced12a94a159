"""hetjax data lengths: how long samples are, and which sizes of a row would fit them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import yaml

from hetjax.config.run_config import TrainConfig
from hetjax.errors import ConfigError, DataError
from hetjax.tools.data.histograms import draw_histograms
from hetjax.tools.data.measured import Amount, Measured, measure
from hetjax.tools.data.row_choices import RowChoice, row_choices, suggested
from hetjax.tools.outcome import Json, Outcome
from hetjax.tools.pictures import output_path
from hetjax.tools.tables import NumberTable


def lengths(
    *, config: TrainConfig, source: Literal["train", "eval"] = "train", samples: int = 2000, out: str | None = None
) -> Outcome:
    """Measure how many tokens and encoder inputs samples have, and suggest the sizes of a row.

    Samples are measured whole, also those that the run's settings are too small for. For rows of one sample each, and
    for rows that samples share, a table shows how much would be padding. A size that images depend on (seq_len without
    processor.context) is that of the run.

    Args:
        config: The settings of the run.
        source: Which data: train or eval.
        samples: How many samples of an epoch, in its order, are measured at most.
        out: Picture to write: histograms, as .png, .svg or .pdf.
    """
    if samples < 1:
        raise ConfigError(f"samples is {samples}; give 1 or more")
    path = None if out is None else output_path(out)
    found = measure(config, source, samples)
    if not found.amounts:
        raise DataError(f"none of the {found.samples} samples can be used. The first: {found.bad[0]}")
    choices = row_choices(found.amounts, packed=config.data.processor.packed)
    best = suggested(choices)
    settings = _settings(found.amounts, best)
    shown: list[object] = [_lengths_table(found), _choices_table(found.amounts, choices, best)]
    shown.append("suggested:\n" + yaml.safe_dump({"data": settings}, sort_keys=False).rstrip())
    if found.bad:
        shown.append(f"{len(found.bad)} samples cannot be used, whatever the sizes; the first: {found.bad[0]}")
    if path is not None:
        draw_histograms(found.amounts, best.sizes, path)
        shown.append(f"wrote {path}")
    numbers = {
        "samples": found.samples,
        "of": found.of,
        "bad": len(found.bad),
        "amounts": {name: amount.summary() for name, amount in found.amounts.items()},
        "choices": [dataclasses.asdict(choice) for choice in choices],
        "suggested": settings,
        "picture": None if path is None else str(Path(path)),
    }
    return Outcome(numbers=numbers, shown=tuple(shown))


def _settings(amounts: Mapping[str, Amount], best: RowChoice) -> dict[str, Json]:
    """Return the settings of `data` that have these sizes."""
    settings: dict[str, Json] = {}
    within: dict[str, Json] = {}
    for name, size in best.sizes.items():
        setting = amounts[name].setting
        place = within if setting.startswith("processor.") else settings
        place.setdefault(setting.removeprefix("processor."), size)
    settings["processor"] = {**within, "packed": best.packed}
    return settings


def _lengths_table(found: Measured) -> NumberTable:
    rows = []
    for amount in found.amounts.values():
        each = amount.summary()
        numbers = [f"{each[name]:,.0f}" for name in ("mean", "p50", "p90", "p99", "max", "has")]
        rows.append((amount.words, f"{each['some']:.0%}", *numbers))
    return NumberTable(
        title=f"{found.samples:,} of {found.of:,} samples",
        texts=("what a sample takes",),
        numbers=("samples with some", "mean", "half below", "90 % below", "99 % below", "most", "in a row now"),
        rows=rows,
    )


def _choices_table(amounts: Mapping[str, Amount], choices: Sequence[RowChoice], best: RowChoice) -> NumberTable:
    rows = []
    for choice in choices:
        sizes = [f"{choice.sizes[name]:,} ({choice.padding[name]:.0%})" for name in choice.sizes]
        kind = "shared by samples" if choice.packed > 1 else "one sample"
        note = " (this run)" if choice.is_run else " (suggested)" if choice is best else ""
        rows.append((kind + note, *sizes, str(choice.packed), f"{choice.left_out:.1%}"))
    names = [amounts[name].setting.removeprefix("processor.") for name in choices[0].sizes]
    return NumberTable(
        title="sizes of a row (and how much of them is padding)",
        texts=("rows",),
        numbers=(*names, "packed", "samples left out"),
        rows=rows,
    )
