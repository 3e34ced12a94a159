"""What is opened as a medium: regular files and data URIs, nothing else, and no more of it than the limits say."""

import base64
import os
import socket
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from hetjax.data.media import DataUri, MediaLimits, VideoSampling, read_audio, read_image, read_video
from hetjax.errors import ConfigError, DataError
from tests.harness.media_files import corners, film, grey, sound, tone

READERS = {
    "image": read_image,
    "audio": read_audio,
    "video": lambda source, **limits: read_video(source, VideoSampling(), **limits),
}


def uri(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture
def png(tmp_path):
    Image.fromarray(corners()).save(tmp_path / "a.png")
    return (tmp_path / "a.png").read_bytes()


def test_a_data_uri_is_an_image(png):
    text = uri(png)
    wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    url_safe = text[:22] + text[22:].translate(str.maketrans("+/", "-_")).rstrip("=")
    escaped = "data:image/png," + "".join(f"%{byte:02x}" for byte in png)
    for source in (text, DataUri(text), wrapped, url_safe, escaped, text.replace("data:", "DATA:")):
        np.testing.assert_array_equal(read_image(source), corners())


def test_sounds_and_films_may_be_data_uris_too():
    assert len(read_audio(uri(sound(tone(440, 0.5), "WAV"), "audio/wav"))) == 8000
    assert read_video(uri(film([corners()] * 3), "video/mp4"), VideoSampling()).frames.shape == (1, 32, 48, 3)


@pytest.mark.parametrize("kind", READERS)
def test_no_message_has_the_content_of_a_data_uri(png, kind):
    text = uri(png)
    for broken in (
        text[:-40],
        text[:60],
        text[:-8] + "!!!!",
        text.replace(",", ";"),
        uri(b"nothing at all" * 9),
        "data:,",
    ):
        with pytest.raises(DataError) as error:
            READERS[kind](broken)
        assert len(str(error.value)) < 400 and text[40:60] not in str(error.value) and "data:" in str(error.value)
    assert repr(DataUri(text)) == str(DataUri(text)) and len(str(DataUri(text))) < 80


@pytest.mark.parametrize("kind", READERS)
def test_only_regular_files_are_opened(tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        cases = {
            tmp_path / "pipe": "is a named pipe",
            tmp_path / "socket": "is a socket",
            "/dev/zero": "is a device",
            tmp_path: "is a folder",
            tmp_path / "none": "does not exist",
            tmp_path / "x\0y": "is not the name of a file",
            tmp_path / "x\ud800y": "is not the name of a file",
            tmp_path / ("x" * 5000): "cannot be opened: File name too long",
        }
        for path, message in cases.items():
            start = time.perf_counter()
            with pytest.raises(DataError, match=message) as error:
                READERS[kind](path)
            str(error.value).encode()  # a message that can be printed
            assert time.perf_counter() - start < 20  # none is waited for


@pytest.fixture
def server():
    """A port on which nothing must arrive."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        yield listening


def assert_untouched(server):
    with pytest.raises(TimeoutError):
        server.accept()


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("name", ["http://127.0.0.1:{port}/a", "tcp://127.0.0.1:{port}", "rtsp://127.0.0.1:{port}/a"])
def test_an_address_is_not_fetched(server, kind, name):
    with pytest.raises(DataError, match="does not exist; download it"):
        READERS[kind](name.format(port=server.getsockname()[1]))
    assert_untouched(server)


@pytest.mark.parametrize("kind", ["audio", "video"])
@pytest.mark.parametrize("prefix", ["concat:{0}|{0}", "file:{0}", "subfile,,start,0,end,0,,:{0}", "crypto:{0}"])
def test_protocols_of_ffmpeg_are_names_of_files(tmp_path, kind, prefix):
    path = tmp_path / "a.mp4"
    path.write_bytes(film([corners()] * 3, audio=tone(440, 0.5)))
    READERS[kind](path)
    with pytest.raises(DataError, match="does not exist"):
        READERS[kind](prefix.format(path))


@pytest.mark.parametrize("kind", READERS)
def test_a_playlist_opens_nothing(tmp_path, server, kind):
    (tmp_path / "a.mp4").write_bytes(film([corners()] * 3, audio=tone(440, 0.5)))
    port, there = server.getsockname()[1], tmp_path / "a.mp4"
    mpd = '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S"><Period>'
    lists = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
        "b.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{there}\n#EXT-X-ENDLIST\n",
        "a.ffconcat": f"ffconcat version 1.0\nfile '{there}'\n",
        "a.sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "a.mpd": f'<?xml version="1.0"?>{mpd}<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
        f"<BaseURL>http://127.0.0.1:{port}/a</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "a.eps": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file pop\nshowpage\n%%EOF\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        start = time.perf_counter()
        with pytest.raises(DataError):
            READERS[kind](tmp_path / name)
        assert time.perf_counter() - start < 20  # no answer is waited for
    assert_untouched(server)


def huge_png(width, height):
    def chunk(name, content):
        return struct.pack(">I4s", len(content), name) + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_what_is_too_large_is_not_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(huge_png(60_000, 60_000))
    (tmp_path / "b.png").write_bytes(huge_png(12_000, 9_000))
    (tmp_path / "a.wav").write_bytes(sound(tone(440, 2.0), "WAV"))
    (tmp_path / "a.mp4").write_bytes(film([grey(90)] * 30, audio=tone(440, 3.0)))
    cases = [
        (read_image, "a.png", {}, "large"),
        (read_image, "b.png", {}, r"has 12000 x 9000 pixels, more than processor.limits.image_pixels 8e\+07"),
        (read_audio, "a.wav", {"audio_seconds": 1.5}, "has 2 seconds, more than processor.limits.audio_seconds 1.5"),
        (read_audio, "a.mp4", {"audio_seconds": 1.5}, "has 3 seconds, more than processor.limits.audio_seconds 1.5"),
        (READERS["video"], "a.mp4", {"video_seconds": 2.5}, "has 3 seconds, more than processor.limits.video_seconds"),
        (
            READERS["video"],
            "a.mp4",
            {"image_pixels": 1000},
            "has frames of 48 x 32 pixels, more than .*image_pixels 1000",
        ),
        (READERS["video"], "a.mp4", {"video_pixels": 5000}, "6 frames .frames.max_frames. of 9216 pixels in all, more"),
    ]
    for read, name, limits, message in cases:
        start = time.process_time()
        with pytest.raises(DataError, match=message) as error:
            read(tmp_path / name, limits=MediaLimits(**limits))
        assert name in str(error.value) and time.process_time() - start < 2
    with pytest.raises(ConfigError, match=r"processor.limits.audio_seconds is 0"):
        MediaLimits(audio_seconds=0)
    with pytest.raises(ConfigError, match="the largest image that Pillow opens"):
        MediaLimits(image_pixels=10**9)


def test_a_rate_that_no_sound_has_is_refused(tmp_path):
    wav = bytearray(sound(tone(440, 0.1), "WAV"))
    at = wav.index(b"fmt ") + 12
    for rate in (1, 500_000):
        wav[at : at + 4] = struct.pack("<I", rate)
        (tmp_path / "a.wav").write_bytes(wav)
        with pytest.raises(DataError, match="samples a second"):
            read_audio(tmp_path / "a.wav")


def test_many_threads_read_at_once(tmp_path, png):
    """What is open belongs to one call: no setting of a library is changed for the others."""
    (tmp_path / "a.mp4").write_bytes(film([corners()] * 5, audio=tone(440, 0.5)))
    failed = []

    def read_all():
        try:
            for _ in range(5):
                READERS["video"](tmp_path / "a.mp4"), read_audio(tmp_path / "a.mp4"), read_image(tmp_path / "a.png")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
