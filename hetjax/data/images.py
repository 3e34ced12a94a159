"""An image file to the array that a vision encoder reads."""

from __future__ import annotations

import os

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageOps, UnidentifiedImageError

from hetjax.errors import DataError


def load_image(path: str | os.PathLike[str], size: int) -> Float32[np.ndarray, "size size 3"]:
    """Read an image of any size and Pillow mode as RGB in [-1, 1].

    EXIF orientation is applied, transparency is composited on white, 16-bit grey is scaled to its full
    range (float grey counts as 0 to 1), and of an animation the first frame is taken. The image is
    stretched to `size` x `size` pixels with bicubic resampling, then normalised with mean 0.5 and
    standard deviation 0.5 in every channel: `(value / 255 - 0.5) / 0.5`.

    Raises:
        DataError: the file is missing, truncated or no image; the message names it and what is wrong.
    """
    try:
        with Image.open(path) as file:
            image = _rgb(ImageOps.exif_transpose(file)).resize((size, size), Image.Resampling.BICUBIC)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type when a file is damaged
        raise DataError(f"image '{path}' {_defect(path, error)}; replace the file or remove its line") from error
    return np.asarray(image, np.float32) / np.float32(127.5) - np.float32(1)


def shift_image(image: Float32[np.ndarray, "H W 3"], down: int, right: int) -> Float32[np.ndarray, "H W 3"]:
    """Move an image by whole pixels (negative: up, left); its border is repeated into the gap."""
    height, width, _ = image.shape
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return image[rows[:, None], columns]


def _defect(path: str | os.PathLike[str], error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened: {error.strerror}"
    if isinstance(error, UnidentifiedImageError):
        return "is of no known image format" if os.path.getsize(path) else "is an empty file"
    return f"cannot be decoded (truncated, damaged or too large): {error or type(error).__name__}"


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey(np.asarray(image, np.float32) / 65535)
    if image.mode == "F":
        return _grey(np.nan_to_num(np.asarray(image)))
    if image.has_transparency_data:
        if image.mode == "La":  # premultiplied grey has no direct way to RGBA
            image = image.convert("LA")
        opaque = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _grey(values: Float32[np.ndarray, "H W"]) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)).convert("RGB")
