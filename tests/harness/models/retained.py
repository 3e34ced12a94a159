"""Which tokens of videos of one size `prune` keeps, for tests of the rule by itself."""

import jax
import numpy as np

from hetjax.models.parts.video_pruning import keep_count, prune


def retained(videos, rate: float) -> np.ndarray:
    """Ascending indices into the T * N tokens of each video [*batch, T, N, D]; int32 [*batch, K]."""
    videos = np.asarray(videos)
    *batch, tubelets, tokens, width = videos.shape
    rows, count = int(np.prod(batch)), tubelets * tokens
    segments = np.tile(np.repeat(np.arange(tubelets), tokens), (rows, 1))
    flat, every = videos.reshape(rows, count, width), np.ones((rows, count), bool)
    _, kept = jax.jit(prune, static_argnums=(3, 4))(flat, segments, every, rate, keep_count(tubelets, tokens, rate))
    return np.asarray(kept).reshape(*batch, -1)
