"""Samples: a conversation as ids, the media that its placeholders stand for, and its use of a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

# L ids of the sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowUse:
    """Amounts of the resources of a row of the batch: those that a sample takes, or the capacity.

    Attributes:
        tokens: positions of the language model's sequence, after pruning.
        before_pruning: ids, those of tokens that will be pruned included.
        media: by the name of each `hetjax.data.modalities.modality.Resource`.
    """

    tokens: int
    before_pruning: int
    media: Mapping[str, int]

    @property
    def amounts(self) -> tuple[int, ...]:
        """Return all amounts, the tokens first."""
        return (self.tokens, self.before_pruning, *self.media.values())

    @staticmethod
    def total(uses: Iterable[RowUse], *, like: RowUse) -> RowUse:
        """Return the sum; `like` has the resources, for the sum of none."""
        uses = list(uses)
        return RowUse(
            tokens=sum(use.tokens for use in uses),
            before_pruning=sum(use.before_pruning for use in uses),
            media={name: sum(use.media[name] for use in uses) for name in like.media},
        )

    def times(self, factor: float) -> RowUse:
        """Return the amounts times a factor, to whole ones."""
        return RowUse(
            tokens=round(self.tokens * factor),
            before_pruning=round(self.before_pruning * factor),
            media={name: round(amount * factor) for name, amount in self.media.items()},
        )


class PlacedMedium(NamedTuple):
    """One array for an encoder, and the positions of its placeholders among the ids of the sample."""

    array: np.ndarray
    positions: Int32[np.ndarray, " _"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One conversation, ready to be collated.

    Attributes:
        ids: its tokens, with a placeholder for every encoder token.
        weights: what each of them counts in the loss: 0 but for what assistants say, the end of an answer included.
        media: by modality the arrays for its encoder, in the order of the prompt: normalized pixels float32 [H, W, 3]
            of images and [F, H, W, 3] of videos, samples float32 [samples] at 16 kHz of clips of audio.
        use: amounts that it takes of a row.
        where: opens every error about it.
    """

    ids: Int32[np.ndarray, " L"]
    weights: Float32[np.ndarray, " L"]
    media: Mapping[str, tuple[PlacedMedium, ...]]
    use: RowUse
    where: str

    def blanked(self, kinds: Collection[str]) -> Sample:
        """Return the sample with the media of some modalities without content: all pixels of the mean colour, silence.

        Their sizes and lengths stay, and so do the prompt and the positions of their tokens.
        """
        media = {
            name: tuple(each._replace(array=np.zeros_like(each.array)) for each in media) if name in kinds else media
            for name, media in self.media.items()
        }
        return dataclasses.replace(self, media=media)
