"""Frames of films are those that players show, at the times at which they show them."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from hetjax.data.media import VideoSampling, read_audio, read_video
from tests.harness.media_files import RATE, corners, film, grey, tone, with_edit

CONTAINERS = [("mp4", "mpeg4"), ("matroska", "mpeg4"), ("webm", "libvpx-vp9"), ("mpegts", "h264")]


def read(tmp_path, data, sampling, **options):
    path = tmp_path / "film"  # the name says nothing: the content does
    path.write_bytes(data)
    return read_video(path, sampling, **options)


def levels(video, step):
    return [round(frame.mean() / step) for frame in video.frames]


def test_frames_that_an_edit_list_hides_are_not_there(tmp_path):
    """300 frames in the header, of which the edit list shows 60: frames 120 to 179."""
    pictures = [grey(i * 240 // 300) for i in range(300)]
    data = with_edit(film(pictures, rate=30), first=Fraction(4), seconds=Fraction(2))
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].frames == 300
    video = read(tmp_path, data, VideoSampling(fps=6, max_frames=12))
    places = [59 * i // 11 for i in range(12)]
    np.testing.assert_allclose(video.times, np.array(places) / 30, atol=1e-3)
    np.testing.assert_allclose(levels(video, 0.8), [120 + place for place in places], atol=3)


def test_an_edit_list_may_start_between_key_frames(tmp_path):
    pictures = [grey(2 * i) for i in range(100)]
    data = with_edit(film(pictures, rate=10), first=Fraction(37, 10), seconds=Fraction(3))
    video = read(tmp_path, data, VideoSampling(fps=10))
    np.testing.assert_allclose(video.times, np.arange(30) / 10, atol=1e-3)
    np.testing.assert_allclose(levels(video, 2), range(37, 67), atol=1)


TIMES = [0, 40, 80, 500, 900, 1000, 2500, 2540, 2580, 5000, 5200, 8000]


@pytest.mark.parametrize(("container", "codec"), CONTAINERS[:3])
@pytest.mark.parametrize("fps", [0.4, 1, 3, 25])
def test_a_variable_rate_is_sampled_by_time(tmp_path, container, codec, fps):
    data = film([grey(20 * i) for i in range(12)], times=TIMES, container=container, codec=codec)
    video = read(tmp_path, data, VideoSampling(fps=fps))
    taken = [round(1000 * time) for time in video.times]
    assert set(taken) <= set(TIMES) and taken == sorted(set(taken))
    assert levels(video, 20) == [TIMES.index(time) for time in taken]
    # Of each moment, evenly spread, the frame that is on the screen; how long the last one stays, not all files say.
    counts = range(max(1, int(8 * fps)), max(1, int(8.5 * fps)) + 1)
    assert taken in [on_screen(min(count, 12)) for count in counts]


def on_screen(count):
    moments = [Fraction(8000 * i, count - 1) for i in range(count)] if count > 1 else [0]
    return sorted({max(time for time in TIMES if time <= moment) for moment in moments})


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24), Fraction(25), Fraction(50)])
@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
def test_an_even_rate_takes_evenly_spread_frames(tmp_path, rate, container):
    """Also where a container counts whole milliseconds."""
    total = 60
    video = read(tmp_path, film([grey(4 * i) for i in range(total)], rate=rate, container=container), VideoSampling())
    wanted = int(total / rate * 2)
    places = [(total - 1) * i // (wanted - 1) for i in range(wanted)] if wanted > 1 else [0]
    np.testing.assert_allclose(video.times, [float(place / rate) for place in places], atol=2e-3)
    np.testing.assert_allclose(levels(video, 4), places, atol=1)


@pytest.mark.parametrize(("container", "codec"), CONTAINERS)
def test_sound_that_begins_late_stays_with_its_picture(tmp_path, container, codec):
    """A click in a track that begins at 2 seconds sounds with the flash at 3 seconds."""
    sound = np.zeros(2 * RATE, np.float32)
    sound[RATE : RATE + 800] = tone(1000, 0.05)
    pictures = [grey(220 if i == 30 else 20) for i in range(40)]
    data = film(pictures, container=container, codec=codec, audio=sound, audio_from=2.0)
    video = read(tmp_path, data, VideoSampling(fps=10), with_audio=True)
    flash = video.times[int(np.argmax(video.frames.mean(axis=(1, 2, 3))))]
    for audio in (video.audio, read_audio(tmp_path / "film")):
        click = np.flatnonzero(np.abs(audio) > 0.1) / RATE
        assert abs(flash - 3) < 0.01 and abs(click[0] - 3) < 0.02 and abs(click[-1] - 3.05) < 0.02
        assert not np.any(audio[: int(1.9 * RATE)])


def test_pictures_that_begin_late_are_shown_late(tmp_path):
    times = [2000 + 100 * i for i in range(10)]
    data = film([grey(20 * i) for i in range(10)], times=times, container="matroska", audio=tone(440, 3.0))
    video = read(tmp_path, data, VideoSampling(fps=10), with_audio=True)
    np.testing.assert_allclose(video.times, np.arange(2, 3, 0.1), atol=0.03)
    assert abs(len(video.audio) / RATE - 3) < 0.1


def test_a_pause_of_the_sound_is_silence(tmp_path):
    """Half a second of sound, a second of nothing, half a second of sound: the file has no packets for the pause."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        track = out.add_stream("flac", rate=RATE, layout="mono")
        track.codec_context.format = "s16"
        wave = (tone(440, 0.5) * 32767).astype(np.int16)
        for start in (0, 24000):
            for first in range(0, 8000, 800):
                frame = av.AudioFrame.from_ndarray(wave[None, first : first + 800], format="s16", layout="mono")
                frame.rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), start + first
                out.mux(track.encode(frame))
        out.mux(track.encode())
    (tmp_path / "a.mka").write_bytes(buffer.getvalue())
    audio = read_audio(tmp_path / "a.mka")
    loud = np.abs(audio).reshape(-1, 1600).max(axis=1) > 0.1
    assert abs(len(audio) - 32000) < 700 and loud[:5].all() and not loud[6:14].any() and loud[16:].all()


def changing(sizes, codec, container):
    """A film of which each encoder in turn makes three frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = None
        for part, (height, width) in enumerate(sizes):
            encoder = av.CodecContext.create(codec, "w")
            encoder.height, encoder.width, encoder.time_base = height, width, Fraction(1, 10)
            encoder.pix_fmt, encoder.framerate = "yuvj420p", 10
            if stream is None:
                stream = out.add_stream(codec, rate=10)
                stream.height, stream.width, stream.pix_fmt = height, width, "yuvj420p"
            packets = []
            for i in range(3):
                frame = av.VideoFrame.from_ndarray(corners((height, width)), format="rgb24")
                frame.pts = 3 * part + i
                packets += encoder.encode(frame)
            for packet in [*packets, *encoder.encode()]:
                packet.stream, packet.time_base = stream, Fraction(1, 10)
                out.mux(packet)
    return buffer.getvalue()


def test_frames_whose_size_changes_are_fitted_into_the_first_one(tmp_path):
    video = read(tmp_path, changing([(32, 48), (64, 96), (48, 24)], "mjpeg", "matroska"), VideoSampling(fps=10))
    assert video.frames.shape == (9, 32, 48, 3)
    for frame in video.frames[:6]:
        assert np.mean(np.abs(frame.astype(int) - corners()) > 60) < 0.15
    tall = video.frames[8].astype(int)
    assert not tall[:, :14].any() and not tall[:, 34:].any()  # 48 x 24 fits as 32 x 16 between black
    assert np.mean(np.abs(tall[:, 16:32] - corners((32, 16))) > 80) < 0.25
    assert video.times == tuple(i / 10 for i in range(9))


def test_pixels_that_are_no_squares_are_stretched(tmp_path):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(corners(), format="rgb24")))
        out.mux(stream.encode())
    assert read(tmp_path, buffer.getvalue(), VideoSampling()).frames.shape[1:] == (32, 64, 3)
