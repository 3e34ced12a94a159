"""A truncated file is an error for every codec and container, and a damaged one an error or whole: never half of it."""

import functools
import io
import time

import numpy as np
import pytest
from PIL import Image, features

from hetjax.data.media import VideoSampling, read_audio, read_image, read_video
from hetjax.errors import DataError
from tests.harness.media_files import film, grey, sound, tone, track

SIZE = (48, 64)
FIRST = {"movflags": "faststart"}  # the index is at the beginning, so that half a file is half a film
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "300000"}


def noisy(level):
    noise = np.random.default_rng(level).integers(-30, 30, (*SIZE, 3))
    return np.clip(grey(level, SIZE).astype(int) + noise, 0, 255).astype(np.uint8)


def clip(codec, container, rate=10, **options):
    return film([noisy(10 * i) for i in range(16)], codec=codec, container=container, rate=rate, **options)


def heard():
    return (tone(440, 1.0) + np.random.default_rng(0).normal(0, 0.05, 16000)).astype(np.float32)


def picture(kind, mode="RGB", **options):
    buffer, small = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(small).resize((96, 64)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


FILMS = {
    "h264.mp4": lambda: clip("h264", "mp4", **FIRST),
    "h264, index behind.mp4": lambda: clip("h264", "mp4"),
    "h264, fragments.mp4": lambda: clip("h264", "mp4", **FRAGMENTS),
    "mpeg4.mp4": lambda: clip("mpeg4", "mp4", **FIRST),
    "mpeg4.avi": lambda: clip("mpeg4", "avi"),
    "mjpeg.avi": lambda: clip("mjpeg", "avi"),
    "mjpeg.mov": lambda: clip("mjpeg", "mov", **FIRST),
    "h264.mkv": lambda: clip("h264", "matroska"),
    "vp8.webm": lambda: clip("libvpx", "webm"),
    "vp9.webm": lambda: clip("libvpx-vp9", "webm"),
    "vp9, live.webm": lambda: clip("libvpx-vp9", "webm", live="1"),
    "h264.ts": lambda: clip("h264", "mpegts"),
    "mpeg2.mpg": lambda: clip("mpeg2video", "mpeg", rate=25),
    "h264.flv": lambda: clip("h264", "flv"),
    "wmv2.asf": lambda: clip("wmv2", "asf"),
}
SOUNDS = {
    "16 bit.wav": lambda: sound(heard(), "WAV", "PCM_16"),
    "float.wav": lambda: sound(heard(), "WAV", "FLOAT"),
    "64 bit header.wav": lambda: sound(heard(), "RF64", "PCM_16"),
    "16 bit.flac": lambda: sound(heard(), "FLAC", "PCM_16"),
    "24 bit.flac": lambda: sound(heard(), "FLAC", "PCM_24"),
    "vorbis.ogg": lambda: sound(heard(), "OGG", "VORBIS"),
    "opus.ogg": lambda: sound(heard(), "OGG", "OPUS"),
    "a.mp3": lambda: sound(heard(), "MP3"),
    "no count.mp2": lambda: track(heard(), "mp2", "mp2"),
    "a.aiff": lambda: sound(heard(), "AIFF", "PCM_16"),
    "a.au": lambda: sound(heard(), "AU", "PCM_16"),
    "a.caf": lambda: sound(heard(), "CAF", "PCM_16"),
    "a.w64": lambda: sound(heard(), "W64", "PCM_16"),
    "aac.m4a": lambda: track(heard(), "aac", "ipod"),
    "aac.aac": lambda: track(heard(), "aac", "adts"),
    "opus.webm": lambda: track(heard(), "libopus", "webm"),
    "a.wv": lambda: track(heard(), "wavpack", "wv"),
    "a.tta": lambda: track(heard(), "tta", "tta"),
}
IMAGES = {
    "a.png": lambda: picture("PNG"),
    "a.jpg": lambda: picture("JPEG"),
    "progressive.jpg": lambda: picture("JPEG", progressive=True),
    "restarts.jpg": lambda: picture("JPEG", restart_marker_rows=1),
    "grey.jpg": lambda: picture("JPEG", mode="L"),
    "a.webp": lambda: picture("WEBP"),
    "a.gif": lambda: picture("GIF"),
    "a.bmp": lambda: picture("BMP"),
    "a.tiff": lambda: picture("TIFF"),
    "a.ppm": lambda: picture("PPM"),
}
if features.check("jpg_2000"):
    IMAGES["a.jp2"] = lambda: picture("JPEG2000")
ALL = {**FILMS, **SOUNDS, **IMAGES}
SUMMED = {"16 bit.flac", "24 bit.flac", "vorbis.ogg", "opus.ogg", "a.png"}
"""Formats with a checksum of all their content, so that any change of a byte shows."""


@functools.cache
def content(name):
    return ALL[name]()


def amount(path, name):
    """How much a file holds: frames, samples or pixels."""
    if name in FILMS:
        return len(read_video(path, VideoSampling(fps=60)).frames)
    return len(read_audio(path)) if name in SOUNDS else read_image(path).shape


def attempt(path, name, data):
    """What is read of a file, or the error; neither may take long."""
    path.write_bytes(data)
    start = time.perf_counter()
    try:
        return amount(path, name)
    except DataError as error:
        assert str(error).startswith(("video", "audio", "image")) and str(path) in str(error)
        return error
    finally:
        assert time.perf_counter() - start < 20  # 2 s is the limit on a machine of one's own: this one is shared


@pytest.mark.parametrize("name", ALL)
def test_a_truncated_file_is_an_error(tmp_path, name):
    data, path = content(name), tmp_path / name
    path.write_bytes(data)
    whole = amount(path, name)
    assert whole == 16 if name in FILMS else whole
    for share in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95):
        found = attempt(path, name, data[: int(len(data) * share) // 2 * 2 + 1])
        assert isinstance(found, DataError), f"{share} of it gave {found} of {whole}"


@pytest.mark.parametrize("name", ALL)
def test_a_damaged_file_is_an_error_or_whole(tmp_path, name):
    data, path, random = content(name), tmp_path / name, np.random.default_rng(0)
    path.write_bytes(data)
    whole, errors = amount(path, name), 0
    for share in (0.2, 0.4, 0.6, 0.8):
        damaged, at = bytearray(data), int(len(data) * share)
        damaged[at : at + 24] = random.bytes(24)
        found = attempt(path, name, bytes(damaged))
        errors += isinstance(found, DataError)
        assert isinstance(found, DataError) or found == whole, f"damage at {share} gave {found} of {whole}"
    assert errors == 4 or name not in SUMMED


@pytest.mark.parametrize("name", [*FILMS, "a.mp3", "no count.mp2", "a.png", "a.jpg", "restarts.jpg", "a.gif"])
def test_a_download_that_left_zeros_is_an_error_or_whole(tmp_path, name):
    data = content(name)
    path, at = tmp_path / name, len(data) // 2
    path.write_bytes(data)
    whole, found = amount(path, name), attempt(path, name, data[:at] + bytes(len(data) - at))
    assert isinstance(found, DataError) or (name in FILMS and found == whole), f"{found} of {whole}"


@pytest.mark.parametrize("name", ["a.jpg", "progressive.jpg", "restarts.jpg", "grey.jpg"])
def test_a_jpeg_of_which_a_piece_is_missing_is_an_error(tmp_path, name):
    """Pillow would paint grey what is not there."""
    data = content(name)
    for share in (0.4, 0.5):  # behind it a progressive one only becomes finer
        at = int(len(data) * share)
        assert isinstance(attempt(tmp_path / name, name, data[:at] + data[at + len(data) // 4 :]), DataError)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": "4:2:2"}, {"progressive": True},
                                     {"restart_marker_rows": 1}, {"optimize": True}, {"keep_rgb": True}])  # fmt: skip
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg_is_read(tmp_path, mode, options):
    path, random = tmp_path / "a.jpg", np.random.default_rng(0)
    for size in ((1, 1), (7, 9), (64, 33)):
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).convert(mode).save(path, **options)
        path.write_bytes(path.read_bytes() + b"what some cameras write behind it")
        with Image.open(path) as image:
            np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ["mpeg4.avi", "mpeg4.mp4", "mpeg2.mpg", "h264.mkv"])
def test_decoders_of_films_say_what_they_cannot_decode(tmp_path, name):
    data, path = bytearray(content(name)), tmp_path / name
    at = len(data) // 2
    data[at : at + 400] = np.random.default_rng(0).bytes(400)
    assert isinstance(attempt(path, name, bytes(data)), DataError)


def test_one_sample_changed_in_a_flac_is_noticed(tmp_path):
    """The MD5 of the samples tells, where every frame is right by itself."""
    data = bytearray(content("16 bit.flac"))
    data[30] ^= 1  # of the MD5
    path = tmp_path / "a.flac"
    path.write_bytes(data)
    with pytest.raises(DataError, match="another MD5"):
        read_audio(path)
    data[26:42] = bytes(16)  # an encoder that gave none
    path.write_bytes(data)
    assert len(read_audio(path)) == 16000


def test_what_no_decoder_needs_may_be_missing(tmp_path):
    """Audio that was streamed has no length in its header; tags stand behind MP3 frames."""
    wav, mp3 = bytearray(content("16 bit.wav")), content("a.mp3")
    at = wav.index(b"data")
    wav[4:8] = wav[at + 4 : at + 8] = b"\xff" * 4
    for name, data in {
        "a.wav": wav,
        "tag.mp3": mp3 + b"TAG" + bytes(125),
        "id3.mp3": id3(300) + mp3,
        "text.mp3": mp3 + b"words" * 9,
    }.items():
        (tmp_path / name).write_bytes(data)
        assert len(read_audio(tmp_path / name)) == 16000


def id3(length):
    return b"ID3\4\0\0" + bytes([0, 0, length >> 7, length & 127]) + bytes(length)
