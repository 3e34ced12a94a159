"""hetjax generate: a model that a run left answers, with every kind of media, and what cannot be is told."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hetjax.cli import main, train_main
from hetjax.data import write_shapes
from tests.test_bad_input import write_dataset

ROOT = Path(__file__).parents[2]
ONE_DEVICE = {
    "llm": ("--placement.llm.devices", "0", "--placement.llm.expert", "1", "--placement.llm.tensor", "1"),
    "vision": ("--placement.vision.devices", "0", "--placement.vision.data", "1"),
    "audio": ("--placement.audio.devices", "0", "--placement.audio.data", "1"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of one step on six made-up samples, and their files."""
    folder = tmp_path_factory.mktemp("made")
    data = write_shapes(folder / "shapes", samples=12)
    train_main(
        [
            *("--config", str(ROOT / "configs/omni_tiny.yaml"), "--demo_data", "null", "--steps", "1"),
            *("--data.train", str(data / "train.jsonl"), "--data.eval", "null", "--run_dir", str(folder / "run")),
            *(
                "--data.batch_size",
                "1",
                "--microbatches",
                "1",
                *(word for words in ONE_DEVICE.values() for word in words),
            ),
        ]
    )
    return folder


@pytest.fixture
def ask(folder, capsys):
    """Ask the run: what the tool found."""

    def call(*arguments: str, run: Path = folder / "run") -> dict:
        capsys.readouterr()
        main(["generate", "--checkpoint", str(run), "--prompt", "Which?", "--json", *arguments])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def media(folder: Path, kind: str) -> tuple[str, str]:
    number, end = {"image": (0, "png"), "audio": (1, "wav"), "video": (2, "mp4")}[kind]
    return f"--{kind}", str(folder / f"shapes/media/{number:05d}.{end}")


def test_a_run_answers_on_pictures_sound_and_films_together(folder, ask):
    all_media = [word for kind in ("image", "audio", "video") for word in media(folder, kind)]
    found = ask(*all_media, "--max_new_tokens", "4")
    assert set(found) == {"answer", "tokens", "seconds"}
    assert 0 <= found["tokens"] <= 4 and found["seconds"] > 0
    # Draws are those of the seed.
    drawn = [ask(*media(folder, "audio"), "--max_new_tokens", "6", "--temperature", "5", "--seed", seed)["answer"]
             for seed in ("1", "1", "2")]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["generate", "--prompt", "Which?", *arguments])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_asked_is_told(folder, capsys, tmp_path):
    run = ("--checkpoint", str(folder / "run"))
    assert "there is no folder" in refused(capsys, "--checkpoint", str(tmp_path / "none"))
    assert "holds no weights" in refused(capsys, "--checkpoint", str(folder / "shapes"))
    (tmp_path / "words.png").write_text("no picture")
    told = refused(capsys, *run, "--image", str(tmp_path / "words.png"))
    assert "words.png" in told and "no known image format" in told
    assert "none.wav" in refused(capsys, *run, "--audio", str(tmp_path / "none.wav"))
    assert "2 marks <image>" in refused(capsys, *run, *media(folder, "image"), "--prompt", "<image> or <image>?")
    assert "temperature" in refused(capsys, *run, "--top_p", "0.5")
    assert "--placement names ear" in refused(capsys, *run, "--placement.ear.devices", "0")


def test_a_model_of_pictures_of_one_size_answers_and_refuses_sound(tmp_path, ask, capsys, folder):
    data = write_dataset(tmp_path / "data", samples=8)
    train_main(
        [
            *("--config", str(ROOT / "configs/digits.yaml"), "--data.train", str(data), "--data.eval", "null"),
            *("--data.batch_size", "8", "--steps", "1", "--run_dir", str(tmp_path / "run"), "--microbatches", "1"),
            *("--placement.vision.devices", "0", "--placement.vision.data", "1", "--placement.llm.devices", "0"),
            *("--placement.llm.data", "1", "--placement.llm.tensor", "1"),
        ]
    )
    Image.fromarray(np.full((9, 7), 90, np.uint8)).save(tmp_path / "a.png")
    found = ask("--image", str(tmp_path / "a.png"), "--max_new_tokens", "3", run=tmp_path / "run")
    assert 0 <= found["tokens"] <= 3
    told = refused(capsys, "--checkpoint", str(tmp_path / "run"), *media(folder, "audio"))
    assert "the model takes text, image, but no audio" in told
