"""Decode an image file to RGB pixels."""

from __future__ import annotations

import os

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from hetjax.data.media.held_media import HeldMedia, readable
from hetjax.errors import DataError

Path = str | os.PathLike[str] | HeldMedia


def open_image(path: Path) -> Image.Image:
    """Read an image of any size and Pillow mode as an RGB picture.

    EXIF orientation is applied, transparency is composited on white, 16-bit grey is scaled to its full
    range (float grey counts as 0 to 1), and of an animation the first frame is taken.

    Raises:
        DataError: the file is missing, truncated or no image; the message names it and what is wrong.
    """
    try:
        with Image.open(readable(path)) as file:
            return _rgb(ImageOps.exif_transpose(file)).copy()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type when a file is damaged
        raise DataError(f"image '{path}' {_defect(path, error)}; replace the file or remove its line") from error


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of an image file, as `open_image` reads it. Raises DataError."""
    return np.asarray(open_image(path))


def _defect(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened: {error.strerror}"
    if isinstance(error, UnidentifiedImageError):
        return (
            "is of no known image format"
            if isinstance(path, HeldMedia) or os.path.getsize(path)
            else "is an empty file"
        )
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
