"""Collate media into the rows of an encoder by what they cost, and say by routes where their tokens belong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int32

from hetjax.data.balance import Items, Rooms, assign
from hetjax.data.modalities.modality import Modality, Placeholder
from hetjax.data.rows.row_capacity import RowCapacity
from hetjax.data.rows.sample import Sample
from hetjax.errors import ConfigError, DataError

# B rows of the batch · S sequence · N tokens that an encoder makes for a row · K of them that are left after pruning
# G microbatches of the encoder · H shards of its batch dim · R rows of a shard

EncoderRows = Mapping[str, Int[np.ndarray, "G H R"]]
"""The rows of a batch that each shard of an encoder takes in each of its microbatches, by module."""


class BalancedRows(NamedTuple):
    """What an encoder of the model takes and where its tokens go.

    Attributes:
        arrays: its inputs, by port.
        positions: those of the tokens in the sequence, by slot of the row that they belong to; S for none.
        routes: by "module.port", as `hetjax.stages.routes` takes them.
        before, after: the load of the shards in each microbatch, with media in the rows of their samples and as they
            lie now.
    """

    arrays: dict[str, np.ndarray]
    positions: Int32[np.ndarray, "B N"]
    routes: dict[str, np.ndarray]
    before: Float[np.ndarray, "G H"]
    after: Float[np.ndarray, "G H"]


class _Item(NamedTuple):
    """A part of a medium: its content, the positions of its placeholders, the row of its sample, and what it takes."""

    array: np.ndarray
    positions: Int32[np.ndarray, " _"]
    row: int
    modality: str
    use: Mapping[str, int]


class _Tables(NamedTuple):
    """What is filled in: all for every row of the batch."""

    positions: Int32[np.ndarray, "B N"]
    tokens: Int32[np.ndarray, "B K"]
    kept: Int32[np.ndarray, "B K 2"]


def balanced_rows(
    capacity: RowCapacity,
    placeholder: Placeholder,
    rows: Sequence[Sequence[Sample]],
    shards: Int[np.ndarray, "G H R"],
) -> BalancedRows:
    """Spread the media of all rows of a batch over the shards of their encoder.

    An item lies in its encoder's rows as always. Its tokens go to the row of its sample: there to the slots behind
    those of the item before, of the same modality, in the order of the prompt. Raises DataError where an item makes
    other tokens than it has placeholders.
    """
    modalities = capacity.encoders[placeholder]
    resources = [resource.name for modality in modalities for resource in modality.resources]
    room = np.array([capacity.most.media[name] for name in resources], np.int64)
    items = [item for row, samples in enumerate(rows) for item in _items(modalities, samples, row)]
    costs = np.array([capacity.modalities[item.modality].cost(item.array) for item in items])
    amounts = np.array([[item.use.get(name, 0) for name in resources] for item in items], np.int64)
    homes = np.array([item.row for item in items], np.int64)
    assigned, before, after = homes.copy(), [], []
    for group in shards:
        order = group.reshape(-1)
        place = np.full(len(rows), -1)
        place[order] = np.arange(len(order))
        own = np.flatnonzero(place[homes] >= 0) if len(homes) else homes
        given = Items(costs[own], amounts[own].reshape(len(own), len(resources)), place[homes[own]])
        found = assign(given, Rooms(group.shape[0], group.shape[1], room))
        assigned[own] = order[found.rows]
        before.append(found.before)
        after.append(found.after)
    arrays, tables = _encoder_arrays(modalities, items, assigned, len(rows), capacity.most.before_pruning)
    kept = f"{placeholder.module}.kept"
    # Tokens of every depth go where those of the last go.
    routes = {port: tables.kept if port == kept else tables.tokens for port in route_shapes(capacity, placeholder)}
    return BalancedRows(arrays, tables.positions, routes, np.array(before), np.array(after))


def route_shapes(capacity: RowCapacity, placeholder: Placeholder) -> dict[str, tuple[int, ...]]:
    """Return the shape of one row of every table of routes of an encoder, by "module.port"."""
    left = sum(modality.tokens - modality.dropped for modality in capacity.encoders[placeholder])
    module, encoder = placeholder.module, capacity.encoders_of[placeholder.module]
    fitted = [
        each for each in capacity.modalities.values() if each.placeholder == placeholder and each.accepts(encoder)
    ]
    ports = {edge.source for each in fitted for edge in each.edges(encoder)}
    depths = {f"{module}.{port}": (left,) for port in getattr(encoder, "deepstack_ports", ())}
    known = {f"{module}.tokens": (left,), f"{module}.kept": (left, 2), **depths}
    if not ports <= set(known):
        raise ConfigError(
            f"processor.balance routes {', '.join(known)}, but the model takes "
            f"{', '.join(sorted(ports - set(known)))}, too; set processor.balance to false"
        )
    return {port: shape for port, shape in known.items() if port in ports}


def _items(modalities: Sequence[Modality], samples: Sequence[Sample], row: int) -> list[_Item]:
    """Return the items of a row, in the order of the prompt, modality by modality."""
    found = []
    starts = np.cumsum([0, *(len(sample.ids) for sample in samples)])
    for modality in modalities:
        for start, sample in zip(starts, samples, strict=False):
            for medium in sample.media[modality.name]:
                parts = modality.items(medium.array)
                positions = np.split(start + medium.positions, len(parts))
                found += [
                    _Item(part, own, row, modality.name, modality.amounts(part))
                    for part, own in zip(parts, positions, strict=True)
                ]
    return found


def _encoder_arrays(
    modalities: Sequence[Modality],
    items: Sequence[_Item],
    assigned: Int[np.ndarray, " items"],
    rows: int,
    sequence: int,
) -> tuple[dict[str, np.ndarray], _Tables]:
    """Return the encoder's inputs with each item in its assigned row, and the tables of where tokens go."""
    count = sum(modality.tokens for modality in modalities)
    left = count - sum(modality.dropped for modality in modalities)
    tables = _Tables(
        np.full((rows, count), sequence, np.int32),
        np.full((rows, left), -1, np.int32),
        np.stack([np.full((rows, left), -1), np.full((rows, left), count)], axis=-1).astype(np.int32),
    )
    by_row: list[list[int]] = [[] for _ in range(rows)]
    for number, row in enumerate(assigned):
        by_row[row].append(number)
    ports: dict[str, list[np.ndarray]] = {}
    first = first_left = 0
    for modality in modalities:
        made = [_row_of(modality, items, numbers) for numbers in by_row]
        for encoder_arrays, _ in made:
            for port, array in encoder_arrays.items():
                ports.setdefault(port, []).append(array)
        tokens = {number: own for _, found in made for number, own in found.items()}
        _route(modality, items, by_row, tokens, tables, first, first_left)
        first, first_left = first + modality.tokens, first_left + modality.tokens - modality.dropped
    return {port: np.stack(arrays) for port, arrays in ports.items()}, tables


def _row_of(
    modality: Modality, items: Sequence[_Item], numbers: Sequence[int]
) -> tuple[dict[str, np.ndarray], dict[int, Int[np.ndarray, " _"]]]:
    """Return (arrays of one row of the encoder, tokens of each item by its number), of one modality."""
    own = [number for number in numbers if items[number].modality == modality.name]
    inputs = modality.encoder_inputs([items[number].array for number in own])
    for number, tokens in zip(own, inputs.tokens, strict=True):
        if len(tokens) != len(items[number].positions):
            raise DataError(
                f"row {items[number].row} of a batch: {len(items[number].positions)} placeholders for {len(tokens)} "
                f"tokens of {modality.name}s"
            )
    return inputs.arrays, dict(zip(own, inputs.tokens, strict=True))


def _route(
    modality: Modality,
    items: Sequence[_Item],
    by_row: Sequence[Sequence[int]],
    tokens: Mapping[int, Int[np.ndarray, " _"]],
    tables: _Tables,
    first: int,
    first_left: int,
) -> None:
    """Give the tokens of a modality slots in the rows of their samples.

    `first` is the first slot of the modality's tokens in every row, `first_left` that of those left after pruning.
    """
    rows, left = tables.tokens.shape
    lies: dict[int, tuple[int, int]] = {}  # encoder row of an item, and its first token there that pruning leaves
    for row, numbers in enumerate(by_row):
        behind = first_left
        for number in numbers:
            if number in tokens:
                lies[number] = row, behind
                behind += items[number].use["kept"] if modality.prunes else 0
    used, used_left = np.full(rows, first), np.full(rows, first_left)
    if not modality.prunes:
        # None is pruned: each token keeps its number.
        slots = np.arange(first_left, first_left + modality.tokens)
        tables.kept[:, slots] = np.stack([np.full(len(slots), -1), np.arange(first, first + len(slots))], axis=-1)
    for number, own in sorted(tokens.items()):
        if not len(own):
            continue
        item, (row, start) = items[number], lies[number]
        # As they lie in the encoder's row, places of prefix tokens among them.
        slots = used[item.row] + own - own[0]
        tables.positions[item.row, slots] = item.positions
        used[item.row] = slots[-1] + 1
        if not modality.prunes:
            tables.tokens[item.row, slots - first + first_left] = row * left + first_left + own
            continue
        kept = np.arange(item.use["kept"])
        there = used_left[item.row] + kept
        tables.tokens[item.row, there] = row * left + start + kept
        tables.kept[item.row, there, 0] = row * left + start + kept
        tables.kept[item.row, there, 1] = slots[0] - first - own[0]
        used_left[item.row] += len(kept)
