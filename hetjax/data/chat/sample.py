"""A conversation as ids, and the media that its placeholders stand for."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

# L ids of the sample · H, W pixels · F frames


class Need(NamedTuple):
    """What a sample takes of a row of the batch.

    Attributes:
        tokens: rows of the language model, after pruning.
        given: rows of ids, before it.
        image_rows, video_rows: rows of the vision encoder.
        kept: video tokens that are left after pruning.
        clips: clips of sound.
    """

    tokens: int
    given: int
    image_rows: int
    video_rows: int
    kept: int
    clips: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class OmniSample:
    """One conversation.

    Attributes:
        ids: its tokens, with a placeholder for every encoder token.
        said: which of them are an assistant's, the end of an answer included.
        images, videos: normalized pixels, of the sizes that the encoder takes.
        clips: sound at 16 kHz.
        image_places, video_places, clip_places: of each image, video and clip the places of its tokens in `ids`.
        need: what it takes of a row.
        where: opens every error about it.
    """

    ids: Int32[np.ndarray, " L"]
    said: Bool[np.ndarray, " L"]
    images: tuple[Float32[np.ndarray, "H W 3"], ...]
    videos: tuple[Float32[np.ndarray, "F H W 3"], ...]
    clips: tuple[Float32[np.ndarray, " samples"], ...]
    image_places: tuple[Int32[np.ndarray, " _"], ...]
    video_places: tuple[Int32[np.ndarray, " _"], ...]
    clip_places: tuple[Int32[np.ndarray, " _"], ...]
    need: Need
    where: str
