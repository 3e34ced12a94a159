"""Decode an image file to RGB pixels."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, UnidentifiedImageError

from hetjax.data.media.file_structure import refuse_damaged, refuse_if, without_broken_extras
from hetjax.data.media.jpeg_segments import jpeg_damage
from hetjax.data.media.limits import MediaLimits
from hetjax.data.media.media_file import Source, named, open_media
from hetjax.data.media.orientation import upright_image
from hetjax.errors import DataError

T = TypeVar("T")

_MOST_BYTES = 16  # of a pixel in a file: four channels of 32 bits
# What Pillow decodes by itself: of other formats some run programs, such as Ghostscript for EPS.
_FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "PPM", "TGA", "ICO", "ICNS", "PCX",
    "SGI", "QOI", "DDS", "PSD",
)  # fmt: skip


def open_image(source: Source, limits: MediaLimits | None = None) -> Image.Image:
    """Read an image of any size and Pillow mode as an RGB picture, from a path or a data URI.

    EXIF orientation is applied, transparency is composited on white, 16-bit grey is scaled to its full
    range (float grey counts as 0 to 1), and of an animation the first frame is taken.

    Raises:
        DataError: the file is missing, truncated, too large or no image; the message names it and what is wrong.
    """
    return _opened(source, limits, Image.Image.copy)


def read_image(source: Source, limits: MediaLimits | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of an image, as `open_image` reads it. Raises DataError."""
    return _opened(source, limits, np.asarray)


def _opened(source: Source, limits: MediaLimits | None, take: Callable[[Image.Image], T]) -> T:
    """Return what `take` makes of the RGB picture while its file is open. Raises DataError."""
    what = named("image", source)
    with open_media(source, "image") as file:
        limits = limits or MediaLimits()
        size = file.seek(0, os.SEEK_END)
        limits.check(what, "image_pixels", size // _MOST_BYTES, f"{size:,} bytes, {_MOST_BYTES} or more a pixel")
        refuse_damaged(file, what)
        try:
            with Image.open(without_broken_extras(file), formats=_known_formats()) as image:
                words = f"{image.width} x {image.height} pixels"
                limits.check(what, "image_pixels", image.width * image.height, words)
                if image.format in ("JPEG", "MPO"):
                    refuse_if(jpeg_damage(file), what)
                image.load()
                return take(_rgb(upright_image(image)))
        except DataError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly every type when a file is damaged
            raise DataError(f"{what} {_defect(error)}; replace the file or remove its line") from error


def _known_formats() -> list[str]:
    """Return those formats that the installed Pillow has."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _defect(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "is of no known image format"
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
