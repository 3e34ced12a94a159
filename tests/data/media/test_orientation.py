"""Pictures come upright: films with a display matrix, images with an EXIF orientation."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from hetjax.data.media import VideoSampling, read_image, read_video
from hetjax.errors import DataError
from tests.harness.media_files import corners, film, with_matrix

# Rows of the display matrix (a, b), (c, d): a point (x, y) of the stored picture is shown at (ax + cy, bx + dy).
MATRICES = {
    "as stored": (1, 0, 0, 1),
    "90 degrees clockwise": (0, 1, -1, 0),
    "180 degrees": (-1, 0, 0, -1),
    "270 degrees clockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}


def shown(picture, a, b, c, d):
    """Move every pixel to where the matrix says, one by one."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width]
    across, down = a * x + c * y, b * x + d * y
    across, down = across - across.min(), down - down.min()
    result = np.zeros((down.max() + 1, across.max() + 1, 3), picture.dtype)
    result[down, across] = picture
    return result


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_a_film_is_turned_as_its_display_matrix_says(tmp_path, name, container):
    path = tmp_path / f"film.{container}"
    path.write_bytes(with_matrix(film([corners()] * 2, container=container), *MATRICES[name]))
    frame = read_video(path, VideoSampling()).frames[0]
    want = shown(corners(), *MATRICES[name])
    assert frame.shape == want.shape
    assert np.mean(np.abs(frame.astype(int) - want) > 40) < 0.15  # the codec blurs the edges of the colours


def test_a_phone_held_upright_has_its_sky_above(tmp_path):
    """The sensor's left edge is up: phones store that as a turn by 90 degrees clockwise."""
    scene = np.zeros((48, 32, 3), np.uint8)
    scene[:24] = (90, 160, 255)
    path = tmp_path / "phone.mp4"
    path.write_bytes(with_matrix(film([np.rot90(scene)] * 2), *MATRICES["90 degrees clockwise"]))
    frame = read_video(path, VideoSampling()).frames[0]
    assert frame.shape == scene.shape and frame[4, 16, 2] > 200 and frame[44, 16, 2] < 50


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_exif_orientation_of_an_image(tmp_path, orientation, suffix):
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(corners()).save(path, exif=exif)
    with Image.open(path) as image:
        want = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), want)


def chunk(name, content, checksum=None):
    checksum = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I4s", len(content), name) + content + checksum.to_bytes(4, "big")


def png_with(*chunks):
    buffer = io.BytesIO()
    Image.fromarray(corners()).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[:33] + b"".join(chunks) + data[33:]  # behind IHDR


BROKEN = {
    "no TIFF": chunk(b"eXIf", b"no TIFF at all"),
    "empty": chunk(b"eXIf", b""),
    "cut": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x05\x01\x12"),
    "offset beyond the end": chunk(b"eXIf", b"II*\0\xff\xff\xff\x7f"),
    "wrong checksum": chunk(b"eXIf", b"MM\0*\0\0\0\x08", checksum=1),
    "a text with a wrong checksum": chunk(b"tEXt", b"Title\0x", checksum=1),
    "an orientation that is none": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_png_with_a_broken_exif_block_is_read(tmp_path, kind):
    path = tmp_path / "a.png"
    path.write_bytes(png_with(BROKEN[kind]))
    np.testing.assert_array_equal(read_image(path), corners())
    path.write_bytes(png_with(BROKEN[kind])[:-40])
    with pytest.raises(DataError, match=r"a.png' cannot be decoded: it is truncated"):
        read_image(path)


def test_a_jpeg_with_a_broken_exif_block_is_read(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(corners()).save(buffer, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03")
    path = tmp_path / "a.jpg"
    path.write_bytes(buffer.getvalue())
    assert read_image(path).shape == corners().shape
