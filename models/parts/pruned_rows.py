"""The inputs of a language model without the rows of image tokens that an encoder has pruned."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from hetjax.models.dims import constrain
from hetjax.models.errors import ModelError
from hetjax.models.parts.video_pruning import Compaction, compact_rows

# B batch · S rows before pruning · C rows after it · P image tokens before it · N image tokens after it


@dataclasses.dataclass(frozen=True)
class PrunedRows:
    """Takes inputs to the rows that are left; leaves all as it is where nothing is pruned.

    Attributes:
        compaction: where the rows go; None where all stay.
    """

    compaction: Compaction | None

    @property
    def any(self) -> bool:
        """Whether rows may go."""
        return self.compaction is not None

    @property
    def length(self) -> int:
        """C."""
        return self.compaction.source.shape[1]

    def take(self, x: Shaped[Array, "B S"] | None) -> Shaped[Array, "B C"] | None:
        """Ids, labels or weights of the rows that are left. Small arrays: each device takes whole sequences for it."""
        if x is None or not self.any:
            return x
        return self.compaction.take(constrain(x, "batch", None))

    def weights(self, x: Float[Array, "B S"] | None) -> Float[Array, "B C"] | None:
        """Loss weights of the rows that are left; 0 where a sample that lost more than others is filled up."""
        taken = self.take(x)
        if taken is None or not self.any:
            return taken
        stays = jnp.take_along_axis(self.compaction.target, self.compaction.source, axis=1) < self.length
        return jnp.where(stays, taken, 0)

    def image(self, positions: Int[Array, "B P"] | None) -> Int[Array, "B N"] | None:
        """The rows of the image tokens that are left."""
        return self.compaction.places if self.any else positions

    def other(self, positions: Int[Array, "B M"] | None) -> Int[Array, "B M"] | None:
        """The rows of other encoder tokens, which all stay."""
        return positions if positions is None or not self.any else self.compaction.move(positions)

    def row(self, row: Int[Array, " B"] | None) -> Int[Array, " B"] | None:
        """One row of each sample, which stays."""
        return row if row is None or not self.any else self.compaction.move(row[:, None])[:, 0]

    def lengths(self, lengths: Int[Array, " B"] | None) -> Int[Array, " B"] | None:
        """How many rows of each sample are left."""
        return lengths if lengths is None or not self.any else self.compaction.shorten(lengths)


def pruned_rows(
    image_positions: Int[Array, "B P"] | None,
    image_kept: Int[Array, "B N"] | None,
    *,
    before: int | None = None,
    after: int | None = None,
    owner: str,
) -> PrunedRows:
    """The rows that are left of `before` rows, of which `after` = before - (P - N) remain: one of both is given.

    Raises ModelError, on behalf of `owner`, for kept tokens without the positions that they are indices into.
    """
    if image_kept is None:
        return PrunedRows(None)
    if image_positions is None:
        raise ModelError(
            f"{owner}: image_kept came without image_positions, which it has indices into; give both to every stage"
        )
    if before is None:
        before = after + image_positions.shape[1] - image_kept.shape[1]
    return PrunedRows(compact_rows(image_positions, image_kept, before))
