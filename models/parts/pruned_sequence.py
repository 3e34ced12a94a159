"""Take the positions of image tokens that an encoder has pruned out of a language model's inputs."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from hetjax.models.dims import constrain
from hetjax.models.errors import ModelError
from hetjax.models.parts.video_pruning import Compaction, compact_sequence

# B batch · S positions before pruning · C after it · P image tokens before it · N image tokens after it


@dataclasses.dataclass(frozen=True)
class PrunedSequence:
    """Takes inputs to the positions that are left; leaves all as it is where nothing is pruned.

    Attributes:
        compaction: where the positions go; None where all stay.
    """

    compaction: Compaction | None

    @property
    def any(self) -> bool:
        """Whether positions may go."""
        return self.compaction is not None

    @property
    def length(self) -> int:
        """Positions that are left, C."""
        return self.compaction.source.shape[1]

    def take(self, x: Shaped[Array, "B S"] | None) -> Shaped[Array, "B C"] | None:
        """Return ids, labels or weights that are left. For small arrays: each device takes whole sequences for it."""
        if x is None or not self.any:
            return x
        return self.compaction.take(constrain(x, "batch", None))

    def weights(self, x: Float[Array, "B S"] | None) -> Float[Array, "B C"] | None:
        """Return the loss weights that are left; 0 where a sample that lost more than others is filled up."""
        taken = self.take(x)
        if taken is None or not self.any:
            return taken
        stays = jnp.take_along_axis(self.compaction.target, self.compaction.source, axis=1) < self.length
        return jnp.where(stays, taken, 0)

    def image(self, positions: Int[Array, "B P"] | None) -> Int[Array, "B N"] | None:
        """Return the positions of the image tokens that are left."""
        return self.compaction.places if self.any else positions

    def other(self, positions: Int[Array, "B M"] | None) -> Int[Array, "B M"] | None:
        """Return the positions of other encoder tokens, which all stay."""
        return positions if positions is None or not self.any else self.compaction.move(positions)

    def position(self, position: Int[Array, " B"] | None) -> Int[Array, " B"] | None:
        """Return one position of each sample, which stays."""
        return position if position is None or not self.any else self.compaction.move(position[:, None])[:, 0]

    def lengths(self, lengths: Int[Array, " B"] | None) -> Int[Array, " B"] | None:
        """Return how many of the first `lengths` positions of each sample are left."""
        return lengths if lengths is None or not self.any else self.compaction.shorten(lengths)


def pruned_sequence(
    image_positions: Int[Array, "B P"] | None,
    image_kept: Int[Array, "B N"] | None,
    *,
    before: int | None = None,
    after: int | None = None,
    owner: str,
) -> PrunedSequence:
    """Return what is left of `before` positions: `after` = before - (P - N) of them; one of both is given.

    Raises ModelError, on behalf of `owner`, for kept tokens without the positions that they are indices into.
    """
    if image_kept is None:
        return PrunedSequence(None)
    if image_positions is None:
        raise ModelError(
            f"{owner}: image_kept came without image_positions, which it has indices into; give both to every stage"
        )
    if before is None:
        before = after + image_positions.shape[1] - image_kept.shape[1]
    return PrunedSequence(compact_sequence(image_positions, image_kept, before))
