"""Turn pictures upright by what their files say of how the camera was held."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

# H, W pixels

_EXIF_ORIENTATION = 0x0112
_BY_EXIF = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright_image(image: Image.Image) -> Image.Image:
    """Return a loaded image turned as its EXIF orientation says; a block that cannot be read says nothing."""
    try:
        turn = _BY_EXIF.get(image.getexif().get(_EXIF_ORIENTATION))
    except Exception:  # Pillow's parser raises nearly every type; the pixels are whole all the same
        turn = None
    return image if turn is None else image.transpose(turn)


def upright_frame(
    pixels: UInt8[np.ndarray, "H W 3"], matrix: Int[np.ndarray, "3 3"] | None
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Return a frame as a display matrix (ISO 14496-12, 6.2.2) shows it, by quarter turns and reflections.

    A point at (x, y) is shown at (a x + c y, b x + d y), where the matrix's first rows are (a, b) and (c, d). Turns
    that are no multiple of 90 degrees go to the nearest one.
    """
    if matrix is None:
        return pixels
    (a, b), (c, d) = matrix[:2, :2].astype(float)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        across, down = a, d
    else:
        pixels = pixels.swapaxes(0, 1)
        across, down = c, b
    pixels = pixels[:, ::-1] if across < 0 else pixels
    return pixels[::-1] if down < 0 else pixels
