"""Pack images and videos as patches for a vision encoder: their pixels, their places, and which image each is of.

On the host, in NumPy. Several images share one sequence, each with places for its prefix tokens before its patches, and
padding at the end. One position of this sequence, a patch, a prefix token or padding, is called a *patch row*.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from PIL import Image

from hetjax.models.errors import ModelError

# H W pixels · C channels · R patch rows · F numbers of a patch · T frames

PADDING = -1000
"""What `places` says of a patch row without a patch or a prefix token, in all four numbers."""
NO_SEGMENT = -1
"""The id of padding in `segments`; images count from 1."""


class PackedPatches(NamedTuple):
    """The patch rows of one sample.

    Attributes:
        patches: pixels of the patch in each patch row; zeros for prefix tokens and padding.
        places: (row, column, height, width) of each patch in the grid of its image; -1 - i in place of the row for
            prefix token i; -1000 for padding.
        segments: an id an image or tubelet. Those of a video's tubelets follow each other, and between two videos one
            is left out.
        tokens: for each image or video, which of the encoder's output tokens are its own, in order.
    """

    patches: Float[np.ndarray, "R F"]
    places: Int[np.ndarray, "R 4"]
    segments: Int[np.ndarray, " R"]
    tokens: tuple[Int[np.ndarray, " _"], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchRows:
    """How images become the patch rows of an encoder.

    Attributes:
        patch_size: side of a square patch, in pixels.
        merge: side of the square of patches that become one token; a square's patches stand next to each other.
        prefix_tokens: learned tokens before the patches of each image.
        frames: frames that one patch spans; a video's number of frames is a multiple.
        channels_first: whether a patch's numbers are in the order (frame, channel, row, column), else with the
            channel last.
        rows_per_image: patch rows that every image or tubelet takes, the rest padding at its end; None for as many as
            it needs.
    """

    patch_size: int
    merge: int = 1
    prefix_tokens: int = 0
    frames: int = 1
    channels_first: bool = True
    rows_per_image: int | None = None

    @property
    def prefix_rows(self) -> int:
        """Patch rows before the patches of an image: padding, so that squares stay together, and the prefix tokens."""
        return -(-self.prefix_tokens // self.merge**2) * self.merge**2

    def rows(self, height: int, width: int) -> int:
        """Return the number of patch rows of an image, or of a tubelet, of height x width patches.

        Raises ModelError where it is more than `rows_per_image`.
        """
        needed = self.prefix_rows + height * width
        if self.rows_per_image is None:
            return needed
        if needed > self.rows_per_image:
            raise ModelError(
                f"PatchRows: {height} x {width} patches and {self.prefix_rows} patch rows before them are {needed} "
                f"patch rows, but rows_per_image = {self.rows_per_image}; raise it or make images smaller"
            )
        return self.rows_per_image

    def pack_images(self, images: Sequence[Float[np.ndarray, "H W C"]], rows: int, channels: int = 3) -> PackedPatches:
        """Return the images of a sample as `rows` patch rows. Raises ModelError where they do not fit."""
        return self._pack([image[None, None] for image in images], rows, channels)

    def pack_videos(
        self, videos: Sequence[Float[np.ndarray, "T H W C"]], rows: int, channels: int = 3
    ) -> PackedPatches:
        """Return the videos of a sample as `rows` patch rows.

        Raises ModelError where they do not fit or frames are left over.
        """
        for video in videos:
            if len(video) % self.frames:
                raise ModelError(
                    f"PatchRows: a video has {len(video)} frames, but a patch spans {self.frames}; "
                    "repeat its last frame, or leave it out"
                )
        return self._pack([video.reshape(-1, self.frames, *video.shape[1:]) for video in videos], rows, channels)

    def _pack(self, sequences: Sequence[Float[np.ndarray, "S T H W C"]], rows: int, channels: int) -> PackedPatches:
        packed = PackedPatches(
            np.zeros((rows, self.frames * channels * self.patch_size**2), np.float32),
            np.full((rows, 4), PADDING, np.int32),
            np.full(rows, NO_SEGMENT, np.int32),
            (),
        )
        start, segment, tokens = 0, 1, []
        for sequence in sequences:
            height, width = self.grid(sequence.shape[2:4])
            own = []
            for frames in sequence:
                first, following = start + self.prefix_rows, start + self.rows(height, width)
                stop = first + height * width
                if following > rows:
                    raise ModelError(
                        f"PatchRows: {len(sequences)} images or videos need {following} patch rows or more, but there "
                        f"are {rows}; give more of them, or fewer or smaller images"
                    )
                self.write_patches(frames, packed.patches[first:stop])
                packed.places[first:stop] = self._places(height, width)
                packed.places[first - self.prefix_tokens : first] = -1 - np.arange(self.prefix_tokens)[:, None]
                packed.segments[first - self.prefix_tokens : stop] = segment
                own.append(np.arange(first, stop, self.merge**2, dtype=np.int32) // self.merge**2)
                start, segment = following, segment + 1
            segment += self.frames > 1
            tokens.append(np.concatenate(own) if own else np.zeros(0, np.int32))
        return packed._replace(tokens=tuple(tokens))

    def write_patches(self, frames: Float[np.ndarray, "T H W C"], patches: Float[np.ndarray, "R F"]) -> None:
        """Put the patches of one tubelet, or of an image as a tubelet of one frame, where they belong, in one copy."""
        height, width = self.grid(frames.shape[1:3])
        size, merge = self.patch_size, self.merge
        split = frames.reshape(len(frames), height // merge, merge, size, width // merge, merge, size, -1)
        order = (1, 4, 2, 5, 0, 7, 3, 6) if self.channels_first else (1, 4, 2, 5, 0, 3, 6, 7)
        split = split.transpose(order)
        target = patches.reshape(split.shape)
        if split.strides[-1] == split.itemsize and split.dtype == target.dtype:
            line = np.dtype((np.void, split.shape[-1] * split.itemsize))  # copied as one item: twice as fast
            split, target = split.view(line), target.view(line)
        target[...] = split

    def _places(self, height: int, width: int) -> Int[np.ndarray, "R 4"]:
        places = np.empty((height, width, 4), np.int32)
        places[...] = (0, 0, height, width)
        places[..., 0], places[..., 1] = np.arange(height)[:, None], np.arange(width)
        return self._merged(places)

    def _merged(self, grid: Shaped[np.ndarray, "rows columns F"]) -> Shaped[np.ndarray, "R F"]:
        """Return a grid as patch rows, the squares of `merge` x `merge` one after another."""
        height, width, last = grid.shape
        squares = grid.reshape(height // self.merge, self.merge, width // self.merge, self.merge, last)
        return squares.swapaxes(1, 2).reshape(-1, last)

    def grid(self, pixels: Sequence[int]) -> tuple[int, int]:
        """Return (rows, columns) of the patches of (height, width) pixels. Raises ModelError where none fits."""
        side = self.patch_size * self.merge
        if any(length <= 0 or length % side for length in pixels):
            raise ModelError(
                f"PatchRows: an image has {pixels[0]} x {pixels[1]} pixels, but patch_size * merge = {self.patch_size} "
                f"* {self.merge} must divide both; resize it to a grid of `hetjax.models.dynamic_resolution`"
            )
        return pixels[0] // self.patch_size, pixels[1] // self.patch_size


def resize(image: Shaped[np.ndarray, "H W C"], height: int, width: int) -> Float[np.ndarray, "height width C"]:
    """Return an image in other pixels, bicubic with antialiasing, as float32 that may leave the pixels' range.

    A channel's pixels lie together in memory: what is done with each channel afterwards is several times faster so.
    """
    planes = np.empty((image.shape[2], height, width), np.float32)
    for channel, plane in enumerate(planes):
        pixels = image[..., channel]
        if image.shape[:2] != (height, width):
            # In Pillow's mode of one float a pixel nothing is rounded or clipped.
            whole = Image.fromarray(np.ascontiguousarray(pixels, np.float32))
            pixels = np.asarray(whole.resize((width, height), Image.Resampling.BICUBIC))
        plane[...] = pixels
    return np.moveaxis(planes, 0, -1)


def normalize(
    image: Shaped[np.ndarray, "*frames H W C"], mean: Sequence[float], std: Sequence[float], *, in_place: bool = False
) -> Float[np.ndarray, "*frames H W C"]:
    """Return pixels from 0 to 255 as (pixel / 255 - mean) / std of their channel, float32.

    With `in_place` an image that is float32 is changed itself.
    """
    scaled = np.asarray(image, np.float32) if in_place else np.array(image, np.float32)  # in the same order of memory
    scaled /= np.float32(255)
    scaled -= np.float32(mean)
    scaled /= np.float32(std)
    return scaled
