"""Collate samples to the arrays that the modules of the graph take."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Int32

from hetjax.data.balance import imbalance
from hetjax.data.chat.processor import Processor
from hetjax.data.modalities.modality import ArraySpec, Modality
from hetjax.data.rows.axes import coordinates
from hetjax.data.rows.balanced_rows import EncoderRows, balanced_rows, route_shapes
from hetjax.data.rows.row_capacity import RowCapacity
from hetjax.data.rows.sample import RowUse, Sample
from hetjax.errors import DataError

# B rows of the batch · S sequence, before pruning · N tokens that an encoder makes for a row · P rows of patches
# D numbers of a patch · C clips · T samples of a clip

HostArrays = dict[str, dict[str, np.ndarray]]
"""The arrays of a batch in host memory, by module and port; "routes" of balanced media and "metrics" beside them."""


def make_arrays(
    processor: Processor, rows: Sequence[Sequence[Sample]], *, training: bool, capacity: RowCapacity | None = None
) -> HostArrays:
    """Return a batch of rows, each with the samples that share it, by module and port.

    Rows have `capacity`, or else that of the processor.

    "llm": tokens int32 [B, S], and for each encoder NAME_positions int32 [B, N], which are S for an encoder token that
    stands for nothing; in `training` also labels int32 [B, S] and loss_weights float32 [B, S], for what an assistant
    says the weight of its message; segments int32 [B, S] where rows are packed; coordinates int32 [B, S, 3],
    time, row and column of each position, where the language model counts by them.
    Of an encoder what its modalities make: "vision" has patches float32 [B, P, D], places int32 [B, P, 4], segments
    int32 [B, P], and for videos the same as video_...; "audio" has waveforms float32 [B, C, T], lengths int32 [B, C].
    Where training is to balance media (`Processor.encoder_rows`), "routes" say which row each token belongs to, and
    "metrics" how even the shards of each encoder are: MODULE/imbalance, and MODULE/imbalance_in_order as it
    would be without.

    Raises:
        DataError: samples do not fit into their row.
    """
    capacity = processor.capacity if capacity is None else capacity
    balanced = processor.encoder_rows if training else {}
    # Positions of balanced media come below, with the inputs of their encoders.
    later = {f"{placeholder.name}_positions" for placeholder in capacity.encoders if placeholder.module in balanced}
    arrays = {
        module: {
            port: np.empty((len(rows), *shape), dtype) for port, (shape, dtype) in ports.items() if port not in later
        }
        for module, ports in row_shapes(capacity, training=training).items()
        if module not in balanced
    }
    for number, samples in enumerate(rows):  # one by one, so that only one row is held beside the batch
        row = _row(capacity, samples, processor.tokenizer.pad, without=balanced)
        for module, ports in arrays.items():
            for port, array in ports.items():
                array[number] = row[module][port]
    return arrays if not balanced else arrays | _balanced(capacity, rows, balanced, arrays["llm"])


def _balanced(
    capacity: RowCapacity,
    rows: Sequence[Sequence[Sample]],
    encoder_rows: EncoderRows,
    llm: dict[str, np.ndarray],
) -> HostArrays:
    """Return the inputs of encoders with their media balanced, "routes" and "metrics"; writes positions into `llm`."""
    arrays: HostArrays = {"routes": {}, "metrics": {}}
    for placeholder in capacity.encoders:
        found = balanced_rows(capacity, placeholder, rows, encoder_rows[placeholder.module])
        llm[f"{placeholder.name}_positions"] = found.positions
        arrays[placeholder.module] = found.arrays
        arrays["routes"] |= found.routes
        arrays["metrics"] |= {
            f"{placeholder.module}/imbalance_in_order": imbalance(found.before),
            f"{placeholder.module}/imbalance": imbalance(found.after),
        }
    return arrays


def row_shapes(capacity: RowCapacity, *, training: bool) -> dict[str, dict[str, ArraySpec]]:
    """Return shape and dtype of one row of every array that `make_arrays` makes, by module and port."""
    sequence = capacity.most.before_pruning
    llm = {"tokens": ArraySpec((sequence,), np.int32)}
    if _counts_by_axes(capacity):
        llm["coordinates"] = ArraySpec((sequence, 3), np.int32)
    shapes: dict[str, dict[str, ArraySpec]] = {"llm": llm}
    if training:
        llm |= {"labels": ArraySpec((sequence,), np.int32), "loss_weights": ArraySpec((sequence,), np.float32)}
        if capacity.config.packed > 1:
            llm["segments"] = ArraySpec((sequence,), np.int32)
    for placeholder, modalities in capacity.encoders.items():
        tokens = sum(modality.tokens for modality in modalities)
        llm[f"{placeholder.name}_positions"] = ArraySpec((tokens,), np.int32)
        shapes[placeholder.module] = {port: spec for modality in modalities for port, spec in modality.shapes().items()}
    return shapes


def row_routes(capacity: RowCapacity) -> dict[str, ArraySpec]:
    """Return shape and dtype of one row of every table of "routes" where media are balanced, by "module.port"."""
    found = {port: shape for encoder in capacity.encoders for port, shape in route_shapes(capacity, encoder).items()}
    return {port: ArraySpec(shape, np.int32) for port, shape in found.items()}


def _row(capacity: RowCapacity, samples: Sequence[Sample], pad: int, *, without: Collection[str] = ()) -> HostArrays:
    """Return the arrays of one row, those of encoders `without` some."""
    where = samples[0].where if len(samples) == 1 else f"{len(samples)} samples from {samples[0].where} on"
    capacity.check(RowUse.total((sample.use for sample in samples), like=capacity.most), where)
    sequence = capacity.most.before_pruning
    row = {
        "tokens": np.full(sequence, pad, np.int32),
        "labels": np.full(sequence, pad, np.int32),
        "loss_weights": np.zeros(sequence, np.float32),
        "segments": np.full(sequence, len(samples), np.int32),
    }
    starts = np.cumsum([0, *(len(sample.ids) for sample in samples)])
    if _counts_by_axes(capacity):
        row["coordinates"] = _coordinates(capacity, samples, sequence)
    for number, (start, sample) in enumerate(zip(starts, samples, strict=False)):
        stop = start + len(sample.ids)
        row["tokens"][start:stop] = sample.ids
        row["labels"][start : stop - 1] = sample.ids[1:]
        row["loss_weights"][start : stop - 1] = sample.weights[1:]
        row["segments"][start:stop] = number
    arrays: HostArrays = {"llm": row}
    for placeholder, modalities in capacity.encoders.items():
        if placeholder.module in without:
            continue
        inputs, positions = _encoder_row(modalities, samples, starts, sequence)
        arrays[placeholder.module], row[f"{placeholder.name}_positions"] = inputs, positions
    return arrays


def _counts_by_axes(capacity: RowCapacity) -> bool:
    """Whether the language model takes time, row and column of each position."""
    return bool(capacity.encoders) and hasattr(capacity.encoders_of.get("llm"), "rope_axes")


def _coordinates(capacity: RowCapacity, samples: Sequence[Sample], sequence: int) -> Int32[np.ndarray, "S 3"]:
    """Return time, row and column of each position of a row, counted anew in each sample; padding goes on."""
    of_samples = []
    for sample in samples:
        parts = []
        for name, media in sample.media.items():
            for medium in media:
                first = 0
                for grid in capacity.modalities[name].token_grids(medium.array):
                    parts.append((int(medium.positions[first]), grid))
                    first += math.prod(grid)
        of_samples.append(coordinates(len(sample.ids), parts))
    behind = of_samples[-1].max() + 1 if of_samples else 0
    padding = behind + np.arange(sequence - sum(map(len, of_samples)), dtype=np.int32)
    return np.concatenate([*of_samples, np.repeat(padding[:, None], 3, axis=1)])


def _encoder_row(
    modalities: Sequence[Modality], samples: Sequence[Sample], starts: Int32[np.ndarray, " _"], sequence: int
) -> tuple[dict[str, np.ndarray], Int32[np.ndarray, " N"]]:
    """Return (arrays of one encoder, positions that its tokens take in the sequence)."""
    arrays: dict[str, np.ndarray] = {}
    positions = np.full(sum(modality.tokens for modality in modalities), sequence, np.int32)
    first = 0
    for modality in modalities:
        media = [
            (medium.array, start + medium.positions)
            for start, sample in zip(starts, samples, strict=False)
            for medium in sample.media[modality.name]
        ]
        inputs = modality.encoder_inputs([array for array, _ in media])
        arrays |= inputs.arrays
        for tokens, (_, own) in zip(inputs.tokens, media, strict=True):
            if len(tokens) != len(own):
                raise DataError(
                    f"{samples[0].where}: {len(own)} placeholders for {len(tokens)} tokens of {modality.name}s"
                )
            positions[first + tokens] = own
        first += modality.tokens
    return arrays, positions


def prompt_lengths(samples: Sequence[Sample]) -> Int32[np.ndarray, " B"]:
    """Return the ids of each prompt, before pruning; the model returns how many are left of them."""
    return np.asarray([sample.use.before_pruning for sample in samples], np.int32)
