"""Load an image file as the array that a vision encoder of fixed size takes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from PIL import Image

from hetjax.data.media.image import open_image
from hetjax.data.media.media_file import Source


def load_image(source: Source, size: int) -> Float32[np.ndarray, "size size 3"]:
    """Read an image of any size and Pillow mode, as `hetjax.data.media.read_image` does, as RGB in [-1, 1].

    The image is stretched to `size` x `size` pixels with bicubic resampling, then normalised with mean 0.5 and
    standard deviation 0.5 in every channel: `(value / 255 - 0.5) / 0.5`.

    Raises:
        DataError: the file is missing, truncated or no image; the message names it and what is wrong.
    """
    image = open_image(source).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / np.float32(127.5) - np.float32(1)


def shift_image(image: Float32[np.ndarray, "H W 3"], down: int, right: int) -> Float32[np.ndarray, "H W 3"]:
    """Move an image by whole pixels (negative: up, left); its border is repeated into the gap."""
    height, width, _ = image.shape
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return image[rows[:, None], columns]
