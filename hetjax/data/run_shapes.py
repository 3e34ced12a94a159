"""The shapes that rows of a run may have: chosen from its samples, and the one that a sample belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from hetjax.data.chat import RowCapacity, RowUse
from hetjax.data.rows.shape_choice import choose_shapes

STEPS = 16
"""Sizes that are told apart of each resource: whole multiples of a sixteenth of the capacity, or of a larger part."""

_BLOCK = 128  # positions that kernels and scans take at once


def rank_of(use: RowUse, shapes: Sequence[RowUse], *, packed: bool) -> int:
    """Return which shape a sample belongs to: the first that holds it, or that holds a row full of samples like it."""
    amounts = use.amounts
    if packed:
        tokens, most = shapes[-1].tokens, shapes[-1].amounts
        amounts = tuple(min(-(-own * tokens // use.tokens), limit) for own, limit in zip(amounts, most, strict=True))
    for rank, shape in enumerate(shapes):
        if all(own <= limit for own, limit in zip(amounts, shape.amounts, strict=True)):
            return rank
    return len(shapes) - 1


def run_shapes(
    uses: Sequence[RowUse],
    capacity: RowCapacity,
    *,
    most: int,
    packed: bool,
    work: Mapping[str, float],
    splits: Mapping[str, int],
) -> list[RowCapacity]:
    """Return at most so many shapes of rows, the one of the least work first and `capacity` last.

    Rows that are packed are full of tokens, so that their shapes differ in media alone. Where video tokens are pruned,
    shapes are left out that devices could not split as they split the capacity.

    Args:
        uses: what samples take, as many of each kind as the stream has.
        capacity: the largest shape.
        most: shapes.
        packed: whether rows hold several samples.
        work: of each module, for a row of the largest shape; it grows with what the module is given.
        splits: parts into which each module's layout splits a sequence.
    """
    limit = capacity.amounts
    needs = np.asarray([[_amount(use, name) for _, name in limit] for use in uses], np.int64)
    full = np.asarray(list(limit.values()), np.int64)
    weights = np.ones(len(needs))
    if packed:
        tokens = needs[:, :1]
        needs, weights = np.minimum(-(-needs * full[0] // tokens), full), tokens[:, 0] / full[0]
    of_module = {module: sum(own for (other, _), own in limit.items() if other == module) for module, _ in limit}
    chosen = choose_shapes(
        needs,
        weights,
        capacity=full.tolist(),
        units=[_unit(amount, capacity, name, splits.get(module, 1)) for (module, name), amount in limit.items()],
        costs=[work[module] / of_module[module] for module, _ in limit],
        most=most,
    )
    names = [name for _, name in limit]
    *smaller, largest = [capacity.sized(dict(zip(names, shape, strict=True))) for shape in chosen.shapes]
    return [*(shape for shape in smaller if _pruned_divides(shape, capacity, splits)), largest]


def _pruned_divides(shape: RowCapacity, capacity: RowCapacity, splits: Mapping[str, int]) -> bool:
    """Return whether devices can split what pruning of video tokens takes and leaves, as they can of the capacity.

    Both follow from the rows of videos, and are no multiples of a unit as these are.
    """
    if capacity.most.before_pruning == capacity.most.tokens:
        return True
    llm = splits.get("llm", 1)
    amounts = [(capacity.most.before_pruning, shape.most.before_pruning, llm)]
    for placeholder, modalities in capacity.encoders.items():
        left, own = (
            sum(each.tokens - each.dropped for each in found) for found in (modalities, shape.encoders[placeholder])
        )
        amounts += [(left, own, llm), (left, own, splits.get(placeholder.module, 1))]
    # Twice, as for the units.
    return all(own % math.gcd(whole, 2 * parts) == 0 for whole, own, parts in amounts if parts > 1)


def _amount(use: RowUse, name: str) -> int:
    return use.tokens if name == "tokens" else use.media[name]


def _unit(amount: int, capacity: RowCapacity, name: str, splits: int) -> int:
    """Return the step between amounts of a resource: it keeps what the capacity divides into."""
    whole = math.gcd(amount, _BLOCK) if name == "tokens" else amount // math.gcd(amount, _tokens(capacity, name))
    if splits > 1:
        whole = math.lcm(whole, math.gcd(amount, 2 * splits))  # twice: a device may have an early and a late part
    steps = amount // whole if amount % whole == 0 else 1
    return amount // max(step for step in range(1, min(steps, STEPS) + 1) if steps % step == 0)


def _tokens(capacity: RowCapacity, name: str) -> int:
    """Return the tokens that an encoder makes of a resource of a row."""
    return next(each.tokens for each in capacity.modalities.values() if each.resources[0].name == name)
