import json
from collections import Counter

import numpy as np
import pytest

from hetjax.data import write_shapes
from hetjax.data.demo_shapes import COLOURS, TONES
from hetjax.data.media import VideoSampling, read_audio, read_image, read_video
from hetjax.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("made") / "shapes", samples=72)


def samples(folder):
    for name in ("train.jsonl", "heldout.jsonl"):
        for line in (folder / name).read_text().splitlines():
            user, answer = json.loads(line)["messages"]
            media, question = user["content"]
            yield media["type"], folder / media[media["type"]], question["text"], answer["content"]


def test_all_questions_are_asked_and_parts_are_counted(folder):
    kinds = Counter(kind for kind, _, _, _ in samples(folder))
    assert kinds == {"image": 24, "audio": 24, "video": 24}
    assert len((folder / "heldout.jsonl").read_text().splitlines()) == 12
    answers = {answer for _, _, _, answer in samples(folder)}
    assert {"low", "middle", "high", "left", "right", "up", "down"} < answers


def test_answers_are_true(folder):
    for kind, path, question, answer in samples(folder):
        if question == "Which colour?":
            pixels = read_image(path).reshape(-1, 3).astype(int)
            brightest = pixels[pixels.sum(axis=1).argmax()]
            assert min(COLOURS, key=lambda name: np.abs(brightest - COLOURS[name]).sum()) == answer
        elif kind == "audio":
            sound = read_audio(path)
            hertz = np.abs(np.fft.rfft(sound)).argmax() * 16000 / len(sound)
            low, high = TONES[answer]
            assert low - 5 <= hertz <= high + 5
        elif kind == "video":
            frames = read_video(path, VideoSampling()).frames.mean(axis=-1)
            assert len(frames) == 4
            grid = np.indices(frames.shape[1:])
            first, last = ((grid * (frame > 120)).sum(axis=(1, 2)) / (frame > 120).sum() for frame in frames[[0, -1]])
            moved = {"left": (0, -9), "right": (0, 9), "up": (-9, 0), "down": (9, 0)}[answer]
            np.testing.assert_allclose(last - first, moved, atol=1)


def test_the_same_seed_makes_the_same_files(folder, tmp_path):
    again = write_shapes(tmp_path / "shapes", samples=72)
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes(), path
    assert write_shapes(folder, samples=72) == folder
    with pytest.raises(DataError, match="other than these shapes"):
        write_shapes(folder, samples=72, seed=1)
    with pytest.raises(ConfigError, match="samples is 5"):
        write_shapes(tmp_path / "few", samples=5)
