"""Samples to the arrays that the modules of the graph take.

B rows of the batch · S sequence, before pruning · N vision tokens a row · M audio tokens a row · C clips · T samples
P, Q rows of images and videos · D numbers of a patch
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hetjax.data.chat.packing import pack
from hetjax.data.chat.processor import Processor
from hetjax.data.chat.row_capacity import Room
from hetjax.data.chat.sample import Need, OmniSample
from hetjax.errors import DataError
from hetjax.models.parts.audio_clips import stack_clips, token_rows

Arrays = dict[str, dict[str, np.ndarray]]


def make_arrays(processor: Processor, rows: Sequence[Sequence[OmniSample]], *, training: bool) -> Arrays:
    """A batch of rows, each with the samples that share it, by module and port.

    "llm": tokens int32 [B, S], image_positions int32 [B, N] and audio_positions int32 [B, M], which are S for an
    encoder's token that stands for nothing; in `training` also labels int32 [B, S] and loss_weights float32 [B, S], 1
    for what an assistant says; and segments int32 [B, S] where rows are packed.
    "vision": patches float32 [B, P, D], places int32 [B, P, 4], segments int32 [B, P]; for videos the same as video_...
    "audio": waveforms float32 [B, C, T] and lengths int32 [B, C].

    Raises:
        DataError: samples do not fit into their row.
    """
    made = [_row(processor, samples, training) for samples in rows]
    shapes = row_shapes(processor.room, training=training)
    return {
        module: {
            port: np.stack([row[module][port] for row in made]) if made else np.empty((0, *shape), dtype)
            for port, (shape, dtype) in ports.items()
        }
        for module, ports in shapes.items()
    }


def row_shapes(room: Room, *, training: bool) -> dict[str, dict[str, tuple[tuple[int, ...], type]]]:
    """(shape, dtype) of one row of every array that `make_arrays` makes."""
    config = room.config
    sequence = room.need.given
    shapes: dict[str, dict[str, tuple[tuple[int, ...], type]]] = {"llm": {"tokens": ((sequence,), np.int32)}}
    if training:
        shapes["llm"] |= {"labels": ((sequence,), np.int32), "loss_weights": ((sequence,), np.float32)}
        if config.packed > 1:
            shapes["llm"]["segments"] = ((sequence,), np.int32)
    if room.sees:
        shapes["llm"]["image_positions"] = ((room.image_tokens + room.video_tokens,), np.int32)
        shapes["vision"] = {}
    for prefix, count, layout in (
        ("", config.image_rows, room.image_rows),
        ("video_", config.video_rows, room.video_rows),
    ):
        if count:
            numbers = layout.frames * 3 * layout.patch_size**2
            shapes["vision"] |= {
                f"{prefix}patches": ((count, numbers), np.float32),
                f"{prefix}places": ((count, 4), np.int32),
                f"{prefix}segments": ((count,), np.int32),
            }
    if room.hears:
        shapes["llm"]["audio_positions"] = ((room.audio_tokens,), np.int32)
        shapes["audio"] = {
            "waveforms": ((config.clips, room.clip_samples), np.float32),
            "lengths": ((config.clips,), np.int32),
        }
    return shapes


def packed_rows(processor: Processor, samples: Sequence[OmniSample], *, at_least: int = 1) -> list[list[int]]:
    """Which samples share a row: about equally full ones, as `hetjax.data.chat.packing.pack` chooses them.

    Samples that would fit into fewer rows than `at_least` are spread over so many.
    """
    needs = [sample.need for sample in samples]
    least = -(-sum(need.tokens for need in needs) // processor.room.need.tokens)
    return pack(needs, processor.room.need, bins=max(at_least, least))


def _row(processor: Processor, samples: Sequence[OmniSample], training: bool) -> Arrays:
    room, pad = processor.room, processor.tokenizer.pad
    total = Need(*(sum(amounts) for amounts in zip(*(sample.need for sample in samples), strict=True)))
    room.check(total, samples[0].where if len(samples) == 1 else f"{len(samples)} samples from {samples[0].where} on")
    sequence = room.need.given
    row = {
        "tokens": np.full(sequence, pad, np.int32),
        "labels": np.full(sequence, pad, np.int32),
        "loss_weights": np.zeros(sequence, np.float32),
        "segments": np.full(sequence, len(samples), np.int32),
    }
    starts = np.cumsum([0, *(len(sample.ids) for sample in samples)])
    for number, (start, sample) in enumerate(zip(starts, samples, strict=False)):
        stop = start + len(sample.ids)
        row["tokens"][start:stop] = sample.ids
        row["labels"][start : stop - 1] = sample.ids[1:]
        row["loss_weights"][start : stop - 1] = sample.said[1:]
        row["segments"][start:stop] = number
    arrays: Arrays = {"llm": row}
    if room.sees:
        arrays["vision"], row["image_positions"] = _vision(processor, samples, starts)
    if room.hears:
        clips = [clip for sample in samples for clip in sample.clips]
        waveforms, lengths = stack_clips(clips, processor.config.clips, room.clip_samples)
        arrays["audio"] = {"waveforms": waveforms, "lengths": lengths}
        row["audio_positions"] = np.full(room.audio_tokens, sequence, np.int32)
        places = _places(samples, starts, "clip_places")
        if places:
            row["audio_positions"][token_rows(lengths, room.clip_samples)[0]] = np.concatenate(places)
    return arrays


def _vision(processor: Processor, samples: Sequence[OmniSample], starts: np.ndarray):
    """(arrays of the vision encoder, rows that its tokens take in the sequence)."""
    room, arrays = processor.room, {}
    positions = np.full(room.image_tokens + room.video_tokens, room.need.given, np.int32)
    groups = (
        ("", processor.image_rows, "images", "image_places", room.need.image_rows, 0),
        ("video_", processor.video_rows, "videos", "video_places", room.need.video_rows, room.image_tokens),
    )
    for prefix, layout, media, places, rows, offset in groups:
        if not rows:
            continue
        given = [medium for sample in samples for medium in getattr(sample, media)]
        packed = (layout.pack_images if media == "images" else layout.pack_videos)(given, rows)
        arrays |= {f"{prefix}{port}": getattr(packed, port) for port in ("patches", "places", "segments")}
        for tokens, where in zip(packed.tokens, _places(samples, starts, places), strict=True):
            if len(tokens) != len(where):
                raise DataError(f"{samples[0].where}: {len(where)} placeholders for {len(tokens)} tokens of {media}")
            positions[offset + tokens] = where
    return arrays, positions


def _places(samples: Sequence[OmniSample], starts: np.ndarray, name: str) -> list[np.ndarray]:
    return [start + places for start, sample in zip(starts, samples, strict=False) for places in getattr(sample, name)]


def prompt_lengths(samples: Sequence[OmniSample]) -> np.ndarray:
    """How many ids each prompt has, those of tokens to be pruned included; the model tells what is left of them."""
    return np.asarray([sample.need.given for sample in samples], np.int32)
