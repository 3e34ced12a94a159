"""Batches of random numbers in the shapes of real ones, for tools that time a step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import numpy as np

from hetjax.models.kernels.attention_scores import Packing
from hetjax.stages.batch import ROUTES, Batch

# B batch · S fused sequence · N image tokens a sample


def random_batch(
    shapes: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]],
    *,
    vocab_size: int,
    seed: int = 0,
    packings: Mapping[str, Packing] | None = None,
) -> Batch:
    """Return arrays of these shapes, as `hetjax.config.build.batch_shapes` gives them: {module: {input: array}}.

    Images, patches and audio are standard normal; tokens and labels are ids below `vocab_size`; every position counts
    in the loss and belongs to one document; image tokens take the first N positions of each sequence and audio tokens
    the next ones (positions past its end are dropped, as padding is); coordinates are those of text. Patches are those
    of images and tubelets as large as `packings` say, by module, or of one image and a video of up to four tubelets,
    all squares; clips have their full length. Where media are balanced, every token is routed to the row that it is
    encoded in.
    """
    random = np.random.default_rng(seed)

    def longest(module: str, port: str, rows: int) -> int:
        packing = (packings or {}).get(module)
        if packing:
            return packing[-1 if port.startswith("video_") else 0].longest
        return _tubelet(port, rows)

    def fill(module: str, port: str, aval: jax.ShapeDtypeStruct) -> np.ndarray:
        counted = np.arange(math.prod(aval.shape[1:2]), dtype=np.int32)
        if module == ROUTES:
            own = np.arange(math.prod(aval.shape[:2]), dtype=np.int32).reshape(aval.shape[:2])
            return own if len(aval.shape) == 2 else np.stack([own, np.zeros_like(own)], axis=-1)
        match port:
            case "tokens" | "labels":
                return random.integers(0, vocab_size, aval.shape).astype(aval.dtype)
            case "coordinates":
                return np.broadcast_to(counted[:, None], aval.shape)
            case _ if port.endswith("_positions"):
                return np.broadcast_to(_tokens_ahead(shapes[module], port) + counted, aval.shape)
            case "loss_weights":
                return np.ones(aval.shape, aval.dtype)
            case "segments" | "video_segments":
                return np.broadcast_to(counted // longest(module, port, len(counted)), aval.shape)
            case "places" | "video_places":
                rows = longest(module, port, len(counted))
                return np.broadcast_to(_places(rows, counted), aval.shape)
            case "lengths":
                samples = shapes[module]["waveforms"].shape[-1]
                return np.full(aval.shape, samples, aval.dtype)
        return random.standard_normal(aval.shape).astype(aval.dtype)

    return {
        module: {port: fill(module, port, aval) for port, aval in inputs.items()} for module, inputs in shapes.items()
    }


def _tokens_ahead(inputs: Mapping[str, jax.ShapeDtypeStruct], port: str) -> int:
    """Return the encoder tokens a sample of the modalities whose positions are listed before a port."""
    ports = [name for name in inputs if name.endswith("_positions")]
    return sum(inputs[name].shape[1] for name in ports[: ports.index(port)])


def _tubelet(port: str, rows: int) -> int:
    """Return the patches of an image, which are all, or of a tubelet: a video has four where its patches allow it."""
    return rows // 4 if port.startswith("video_") and rows % 16 == 0 else rows


def _places(rows: int, counted: np.ndarray) -> np.ndarray:
    """Return row, column, height and width in a square grid of at least so many patches, for each image or tubelet."""
    side = math.isqrt(max(rows - 1, 0)) + 1
    number = counted % rows
    whole = np.full_like(number, side)
    return np.stack([number // side, number % side, whole, whole], axis=-1)
