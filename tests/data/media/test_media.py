"""Images, audio and videos read back from files made here."""

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from hetjax.data.media import VideoSampling, read_audio, read_image, read_video
from hetjax.errors import ConfigError, DataError


def tone(hertz, seconds, rate):
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate).astype(np.float32) / 2


def write_video(path, *, frames=12, rate=4, audio=None, size=(32, 48)):
    """Frame i is grey of 20 * i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        track = container.add_stream("aac", rate=16000) if audio is not None else None
        for i in range(frames):
            picture = np.full((*size, 3), 20 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
        if track is not None:
            wave = av.AudioFrame.from_ndarray(audio[None], format="flt", layout="mono")
            wave.rate = 16000
            container.mux(track.encode(wave))
            container.mux(track.encode())
    return path


def main_pitch(samples, rate=16000):
    return np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples)


def test_an_image_is_read_as_rgb(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, size=(5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)
    with pytest.raises(DataError, match=r"image '.*none.png' does not exist"):
        read_image(tmp_path / "none.png")


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_audio_of_any_rate_becomes_one_channel_at_16_khz(tmp_path, rate, suffix):
    left = tone(440, 0.5, rate)
    soundfile.write(tmp_path / f"a.{suffix}", np.stack([left, left / 2], axis=1), rate)
    got = read_audio(tmp_path / f"a.{suffix}")
    assert got.dtype == np.float32 and abs(len(got) - 8000) <= 2
    middle = slice(500, 7500)  # a filter has no past at the very beginning
    np.testing.assert_allclose(got[middle], 0.75 * tone(440, 0.5, 16000)[middle], atol=5e-3)


def test_audio_that_libsndfile_does_not_know_is_decoded_too(tmp_path):
    path = write_video(tmp_path / "a.mp4", audio=tone(1000, 1.0, 16000))
    got = read_audio(path)
    assert got.dtype == np.float32 and abs(len(got) - 16000) < 3000
    assert abs(main_pitch(got) - 1000) < 10


def test_frames_are_sampled_evenly_with_their_times(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=12, rate=4)
    video = read_video(path, VideoSampling(fps=2))
    assert video.frames.shape == (6, 32, 48, 3) and video.audio is None
    np.testing.assert_allclose(video.frames.mean(axis=(1, 2, 3)), 20 * np.array([0, 2, 4, 6, 8, 11]), atol=4)
    assert video.times == (0.0, 0.5, 1.0, 1.5, 2.0, 2.75)
    assert read_video(path, VideoSampling(max_frames=3)).times == (0.0, 1.25, 2.75)
    assert read_video(path, VideoSampling(fps=0.1)).times == (0.0,)


def test_audio_of_a_video_comes_with_it(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=4, rate=4, audio=tone(500, 1.0, 16000))
    sound = read_video(path, VideoSampling(), with_audio=True).audio
    assert abs(main_pitch(sound) - 500) < 10
    silent = write_video(tmp_path / "b.mp4", frames=4)
    assert read_video(silent, VideoSampling(), with_audio=True).audio is None


def test_errors_name_the_file(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    (tmp_path / "bad.wav").write_bytes(b"no sound at all")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(tmp_path / "sound.wav", tone(100, 0.1, 16000), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(10, np.nan, np.float32), 16000, subtype="FLOAT")
    cases = [
        (read_audio, "none.wav", "does not exist"),
        (read_audio, "bad.wav", "cannot be decoded"),
        (read_audio, "empty.wav", "holds no audio"),
        (read_audio, "nan.wav", "no finite numbers"),
        (lambda path: read_video(path, VideoSampling()), "none.mp4", "does not exist"),
        (lambda path: read_video(path, VideoSampling()), "bad.mp4", "cannot be decoded"),
        (lambda path: read_video(path, VideoSampling()), "sound.wav", "has no picture"),
    ]
    for read, name, message in cases:
        with pytest.raises(DataError, match=message) as error:
            read(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(ConfigError, match="max_frames"):
        VideoSampling(max_frames=0)
