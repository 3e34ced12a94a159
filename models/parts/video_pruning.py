"""Drop the video tokens that repeat what stood in their place a tubelet before: efficient video sampling.

From "Efficient Video Sampling" (arXiv 2510.14624), in the form that Nemotron 3 Nano Omni was released with. Token n of
tubelet t differs from the tubelet before by d[t, n] = 1 - cos(E[t, n], E[t-1, n]), and d[0, n] = 255. Of a video of T
tubelets with N tokens each, the max(N, int(T N (1 - rate))) largest are kept (of equal ones the first), in their
own order. So how many are kept is known from shapes alone, on the host as well, and which ones on the device only.

`prune` applies the rule to sequences in which videos of several sizes stand behind each other with padding, as an
encoder makes them. `compact_sequence` then takes the placeholders of dropped tokens out of the sequence of the
language model.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from hetjax.models.errors import ModelError

# B batch · T tubelets · N tokens a tubelet, or encoder tokens a sample · D width · K kept tokens
# R tokens, prefixes and padding of videos
# S fused sequence · C compacted sequence

FIRST = 255.0
"""How much a token of a video's first tubelet differs from what was before: more than any other can."""
_SMALLEST = 1e-8  # norms below count as this much, so that a token of zeros is like no other


def keep_count(tubelets: int, tokens_per_tubelet: int, rate: float) -> int:
    """Return how many tokens of a video are kept where a share `rate` is dropped: never less than one tubelet's.

    Raises:
        ModelError: `rate` is not in [0, 1), or a count is negative.
    """
    _check_rate(rate)
    if tubelets < 0 or tokens_per_tubelet < 0:
        raise ModelError(
            f"keep_count: {tubelets} tubelets of {tokens_per_tubelet} tokens; give counts that are 0 or more"
        )
    return max(tokens_per_tubelet if tubelets else 0, int(tubelets * tokens_per_tubelet * (1 - rate)))


def capacity_for_kept(tokens: int, rate: float, tokens_per_tubelet: int = 256) -> int:
    """Return the static capacity for kept tokens of videos with `tokens` in all: enough for one video of so many.

    `tokens_per_tubelet` is the most tokens that a tubelet has, all of which a video of one tubelet keeps. Several
    short videos in one sample may keep more; the caller checks that they fit, by `keep_count`.
    """
    _check_rate(rate)
    return max(int(tokens * (1 - rate)), min(tokens, tokens_per_tubelet))


def prune(
    tokens: Float[Array, "B R D"],
    segments: Int[Array, "B R"],
    is_token: Bool[Array, "B R"],
    rate: float,
    capacity: int,
) -> tuple[Float[Array, "B K D"], Int[Array, "B K"]]:
    """Return the tokens that are kept of all videos of each sample, and the index that each had.

    Args:
        tokens: those of a sample's videos, one behind the other, each tubelet's next to each other; prefixes and
            padding may be among them, in the same places of all tubelets of a video.
        segments: an id a token, the same for all of one tubelet. The tubelets of a video have ids that follow each
            other (7, 8, 9); where the next id is another than that, another video begins.
        is_token: False for prefixes and padding, which are dropped.
        rate: share of each video's tokens to be dropped.
        capacity: K, kept tokens a sample at most; those beyond it are lost, so give `capacity_for_kept` or more.

    Returns:
        (tokens, kept): the kept tokens in their order, then zeros; and their indices as int32, then R. Gradients
        flow to the tokens that are kept.
    """
    kept = _kept_indices(tokens, segments, is_token, rate, capacity)
    return jnp.take_along_axis(tokens, kept[..., None], axis=1, mode="fill", fill_value=0), kept


class Compaction(NamedTuple):
    """Where the positions of a sequence go when some of them are taken out.

    Attributes:
        source: the old position of each new one.
        target: the new position of each old one; that of one taken out is C, which is none.
        places: the new positions of the kept encoder tokens; C or more for one that has none.
    """

    source: Int[Array, "B C"]
    target: Int[Array, "B S"]
    places: Int[Array, "B K"]

    def take(self, x: Shaped[Array, "B S *rest"]) -> Shaped[Array, "B C *rest"]:
        """Return an array of the sequence (tokens, labels, loss weights, segments) without what is taken out."""
        return jnp.take_along_axis(x, self.source.reshape(*self.source.shape, *[1] * (x.ndim - 2)), axis=1)

    def move(self, positions: Int[Array, "B M"]) -> Int[Array, "B M"]:
        """Return the new positions of other encoder tokens, such as audio; those outside the sequence stay outside."""
        inside = (positions >= 0) & (positions < self.target.shape[1])
        moved = jnp.take_along_axis(self.target, jnp.where(inside, positions, 0), axis=1)
        return jnp.where(inside, moved, self.source.shape[1]).astype(positions.dtype)

    def shorten(self, lengths: Int[Array, " B"]) -> Int[Array, " B"]:
        """Return how many of the first `lengths` positions are left."""
        positions = jnp.arange(self.target.shape[1])
        left = (positions < lengths[:, None]) & (self.target < self.source.shape[1])
        return left.sum(axis=1).astype(lengths.dtype)


def compact_sequence(positions: Int[Array, "B N"], kept: Int[Array, "B K"], length: int) -> Compaction:
    """Take the placeholders of dropped encoder tokens out of a sequence.

    Args:
        positions: that of each of the N encoder tokens there were before pruning; one outside of the sequence
            belongs to no token (prefix, padding).
        kept: which of the N are left, ascending; N or more is padding.
        length: S, that of the sequence.

    The new length is C = S - (N - K), whatever a sample holds; all positions but the placeholders keep their order, and
    padding stays at the end. A sample may have fewer placeholders to lose than N - K: its last positions are left out
    then, and must be padding.

    Raises:
        ModelError: nothing would be left.
    """
    count, left = positions.shape[1], kept.shape[1]
    new_length = length - (count - left)
    if not 0 < new_length <= length:
        raise ModelError(
            f"compact_sequence: {length} positions - ({count} encoder tokens - {left} kept) = {new_length} is no "
            "length; give sequences with a position for every encoder token"
        )
    is_kept = _marked(kept, count)
    inside = (positions >= 0) & (positions < length)
    gone = _marked(jnp.where(is_kept | ~inside, length, positions), length)
    # What stays first, then the others, each in order.
    source = jnp.argsort(gone, axis=1, stable=True)[:, :new_length].astype(jnp.int32)
    target = jnp.where(gone, new_length, jnp.cumsum(~gone, axis=1, dtype=jnp.int32) - 1)
    target = jnp.minimum(target, new_length)
    moved = Compaction(source, target, kept)
    old = jnp.take_along_axis(positions, kept, axis=1, mode="fill", fill_value=length)
    return moved._replace(places=moved.move(old))


def _check_rate(rate: float) -> None:
    if not (0 <= rate < 1 and math.isfinite(rate)):
        raise ModelError(f"video pruning rate is {rate}; give a share from 0 to less than 1")


def _difference(x: Float[Array, "*batch D"], other: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
    """1 - cosine of the angle, in float32 at least."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x, other = x.astype(wide), other.astype(wide)
    norm = lambda v: jnp.maximum(jnp.sqrt(jnp.sum(v * v, axis=-1)), _SMALLEST)  # noqa: E731
    return 1 - jnp.sum(x * other, axis=-1) / (norm(x) * norm(other))


def _kept_indices(tokens, segments, is_token, rate: float, capacity: int) -> Int[Array, "B K"]:
    _check_rate(rate)
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    is_start = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    follows = jnp.concatenate([jnp.zeros_like(segments[:, :1], bool), segments[:, 1:] == segments[:, :-1] + 1], axis=1)
    tubelet, tubelet_end = _bounds(is_start)
    video, video_end = _bounds(is_start & ~follows)
    at = lambda x, index: jnp.take_along_axis(x, index, axis=1)  # noqa: E731

    before = at(tubelet, jnp.maximum(tubelet - 1, 0)) + index - tubelet
    # The order alone comes from here: choosing has no gradient.
    fixed = jax.lax.stop_gradient(tokens)
    differs = _difference(fixed, jnp.take_along_axis(fixed, before[..., None], axis=1))
    differs = jnp.where(tubelet == video, FIRST, differs)

    counted = jnp.pad(jnp.cumsum(is_token, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))
    in_video = at(counted, video_end) - at(counted, video)
    in_tubelet = at(counted, at(tubelet_end, video)) - at(counted, video)
    # On the host, in double precision: a float32 product may fall on the other side of a whole number.
    share = jnp.asarray((np.arange(tokens.shape[1] + 1) * (1 - rate)).astype(np.int32))
    keep = jnp.maximum(in_tubelet, share[in_video])

    # Sorted by video, each keeps the same range of indices, so that ranks count from where it begins.
    keys = (video, jnp.where(is_token, -differs, jnp.inf), jnp.broadcast_to(index, video.shape))
    best = jax.lax.sort(keys, dimension=1, num_keys=2, is_stable=True)[2]
    chosen = jnp.sort(jnp.where(index - video < keep, best, tokens.shape[1]), axis=1)[:, :capacity]
    return jnp.pad(chosen, ((0, 0), (0, capacity - chosen.shape[1])), constant_values=tokens.shape[1])


def _bounds(is_start: Bool[Array, "B R"]) -> tuple[Int[Array, "B R"], Int[Array, "B R"]]:
    """For each token, the first index of the tubelet or video that it is in, and the first index behind it."""
    count = is_start.shape[1]
    index = jnp.arange(count, dtype=jnp.int32)[None]
    first = jax.lax.cummax(jnp.where(is_start, index, 0), axis=1)
    starts = jnp.where(is_start, index, count)
    behind = jax.lax.cummin(jnp.pad(starts[:, 1:], ((0, 0), (0, 1)), constant_values=count), axis=1, reverse=True)
    return first, behind


def _marked(indices: Int[Array, "B K"], count: int) -> Bool[Array, "B N"]:
    """True at the indices of each sample; those of `count` or more mark nothing."""
    mark = jax.vmap(lambda index: jnp.zeros(count, bool).at[index].set(True, mode="drop"))
    return mark(indices)
