"""Sizes of a row of the batch, and how much padding each of them would mean for the samples of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from hetjax.tools.data.measured import Amount
from hetjax.tools.data.shared_rows import shared_rows

# M samples · K amounts, tokens first

_KEPT = (0.9, 0.99, 1.0)  # parts of the samples that rows of one sample each are to take
_TIMES = (1, 2, 4, 8)  # the longest sample, of rows that samples share
_GOOD = 0.05  # padding with which shorter rows are preferred to less padding
_LEFT_OUT = 0.011  # part of the samples that a suggestion may leave out


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowChoice:
    """Sizes of a row.

    Attributes:
        sizes: what a row has of each amount.
        packed: the most samples that share a row; 1 packs none.
        padding: the part of each amount that nothing takes, 0 to 1.
        left_out: the part of the samples that do not fit into a row.
        is_run: whether these are the sizes of the run.
    """

    sizes: Mapping[str, int]
    packed: int
    padding: Mapping[str, float]
    left_out: float
    is_run: bool = False


def row_choices(amounts: Mapping[str, Amount], *, packed: int) -> list[RowChoice]:
    """Return sizes to choose from, the first of them those of the run, whose rows at most `packed` samples share."""
    settings = {name: amount for name, amount in amounts.items() if name == "tokens" or amount.has}
    needs = np.stack([amount.taken for amount in settings.values()], axis=1)
    own = {name: amount.has for name, amount in settings.items()}
    found = [dataclasses.replace(_choice(needs, own, packed), is_run=True)]
    for part in _KEPT:
        sizes = {name: amount.up(np.quantile(amount.taken, part)) for name, amount in settings.items()}
        found.append(_choice(needs, sizes, 1))
    longest = settings["tokens"].up(settings["tokens"].taken.max())
    for times in _TIMES:
        found.append(_choice(needs, _packed_sizes(needs, settings, times * longest), len(needs)))
    return [choice for place, choice in enumerate(found) if choice not in found[:place]]


def suggested(choices: Sequence[RowChoice]) -> RowChoice:
    """Return the shortest rows with little padding that take nearly all samples, or those with the least padding."""
    able = [choice for choice in choices if choice.left_out <= _LEFT_OUT] or list(choices)
    good = [choice for choice in able if choice.padding["tokens"] <= _GOOD]
    if good:
        return min(good, key=lambda choice: choice.sizes["tokens"])
    return min(able, key=lambda choice: (choice.padding["tokens"], choice.sizes["tokens"]))


def _packed_sizes(needs: Int64[np.ndarray, "M K"], settings: Mapping[str, Amount], tokens: int) -> dict[str, int]:
    """Return sizes of rows of so many tokens: of the rest what nearly all rows take, and every sample."""
    rows = shared_rows(needs[:, :1], [tokens])
    taken = np.stack([needs[row].sum(axis=0) for row in rows])
    most = np.maximum(np.quantile(taken, 0.9, axis=0), needs.max(axis=0))
    sizes = {name: amount.up(most[place]) for place, (name, amount) in enumerate(settings.items())}
    return {**sizes, "tokens": tokens}


def _choice(needs: Int64[np.ndarray, "M K"], sizes: Mapping[str, int], most: int) -> RowChoice:
    """Return what rows of these sizes come to, each of at most `most` samples."""
    capacity = np.asarray(list(sizes.values()))
    fits = np.all(needs <= capacity, axis=1)
    kept = needs[fits]
    if not len(kept):
        return RowChoice(sizes=sizes, packed=1, padding=dict.fromkeys(sizes, 1.0), left_out=1.0)
    rows = shared_rows(kept, capacity.tolist(), most=most) if most > 1 else [[number] for number in range(len(kept))]
    padding = 1 - kept.sum(axis=0) / np.maximum(capacity * len(rows), 1)
    return RowChoice(
        sizes=dict(sizes),
        packed=max(map(len, rows)),
        padding=dict(zip(sizes, padding.tolist(), strict=True)),
        left_out=1 - len(kept) / len(needs),
    )
