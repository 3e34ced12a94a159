"""Batches of random numbers in the shapes of real ones, for tools that time a step."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from hetjax.batch import Batch

# B batch · S fused sequence · N image tokens a sample


def random_batch(shapes: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]], *, vocab_size: int, seed: int = 0) -> Batch:
    """Arrays of these shapes, as `hetjax.build.batch_shapes` gives them: {module: {input: array}}.

    Images are standard normal; tokens and labels are ids below `vocab_size`; every row counts in the loss;
    image tokens take the first N rows of each sequence (rows past its end are dropped, as padding is).
    """
    random = np.random.default_rng(seed)

    def fill(port: str, aval: jax.ShapeDtypeStruct) -> np.ndarray:
        match port:
            case "tokens" | "labels":
                return random.integers(0, vocab_size, aval.shape).astype(aval.dtype)
            case "image_positions":
                return np.broadcast_to(np.arange(aval.shape[1], dtype=aval.dtype), aval.shape)
            case "loss_weights":
                return np.ones(aval.shape, aval.dtype)
        return random.standard_normal(aval.shape).astype(aval.dtype)

    return {module: {port: fill(port, aval) for port, aval in inputs.items()} for module, inputs in shapes.items()}
