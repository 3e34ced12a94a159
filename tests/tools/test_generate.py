"""hetjax generate: a model that a run left answers, with every kind of media, and what it cannot answer is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hetjax.checkpoint import Checkpoints
from hetjax.cli import main
from hetjax.config.build import build_trainer
from hetjax.config.run_config import load_config
from hetjax.data import write_shapes
from hetjax.data.chat import load_tokenizer
from hetjax.meshes import Layout
from tests.harness.huggingface.folders import LLAMA, tensors_of, write_folder
from tests.harness.huggingface.omni_cases import hf_config
from tests.harness.paths import ROOT

# The presets' modules with a layer each.
SMALL = {"llm.pattern": "M*E", "vision.layers": 1, "audio.layers": 1}


def write_run(folder: Path, *arguments: str) -> Path:
    """The folder of a run that stands before its first step."""
    config, resolved = load_config([*arguments, "--fake_devices", "null"])
    config = dataclasses.replace(config, placement={name: Layout(devices="0") for name in config.placement})
    trainer = build_trainer(config)
    checkpoints = Checkpoints(folder / "checkpoints", keep=1, trainer=trainer)
    checkpoints.save(trainer.init(0), {})
    checkpoints.wait()
    checkpoints.close()
    (folder / "config.yaml").write_text(resolved)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, and made-up files."""
    folder = tmp_path_factory.mktemp("made")
    write_shapes(folder / "shapes", samples=6)
    write_run(folder / "run", "--config", str(ROOT / "configs/omni_tiny.yaml"), "--model.changes", json.dumps(SMALL))
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


def test_a_run_answers_on_images_audio_and_videos_together(folder, ask):
    all_media = [word for kind in ("image", "audio", "video") for word in media(folder, kind)]
    found = ask(*all_media, "--max_new_tokens", "4")
    assert set(found) == {"answer", "tokens", "seconds"}
    assert 0 <= found["tokens"] <= 4 and found["seconds"] > 0


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["generate", "--prompt", "Which?", *arguments])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_asked_is_refused(folder, capsys, tmp_path):
    run = ("--checkpoint", str(folder / "run"))
    assert "there is no folder" in refused(capsys, "--checkpoint", str(tmp_path / "none"))
    assert "holds no weights" in refused(capsys, "--checkpoint", str(folder / "shapes"))
    (tmp_path / "words.png").write_text("no picture")
    told = refused(capsys, *run, "--image", str(tmp_path / "words.png"))
    assert "words.png" in told and "no known image format" in told
    assert "none.wav" in refused(capsys, *run, "--audio", str(tmp_path / "none.wav"))
    assert "2 marks <image>" in refused(capsys, *run, *media(folder, "image"), "--prompt", "<image> or <image>?")
    assert "image, video, audio, but no smell" in refused(capsys, *run, "--files", '{"smell": ["a.npy"]}')
    assert "temperature" in refused(capsys, *run, "--top_p", "0.5")
    assert "--placement names ear" in refused(capsys, *run, "--placement.ear.devices", "0")


def test_a_model_of_images_of_one_size_answers_and_refuses_audio(tmp_path, ask, capsys, folder):
    write_run(tmp_path / "run", "--config", str(ROOT / "configs/digits.yaml"))
    Image.fromarray(np.full((9, 7), 90, np.uint8)).save(tmp_path / "a.png")
    found = ask("--image", str(tmp_path / "a.png"), "--max_new_tokens", "3", run=tmp_path / "run")
    assert 0 <= found["tokens"] <= 3
    told = refused(capsys, "--checkpoint", str(tmp_path / "run"), *media(folder, "audio"))
    assert "the model takes text, image, but no audio" in told


def test_a_hugging_face_folder_answers_as_what_is_converted_from_it(tmp_path, ask, capsys):
    hf = {**LLAMA, "vocab_size": 288, "max_position_embeddings": 64}
    source = write_folder(tmp_path / "hf", hf, tensors_of(hf))
    load_tokenizer(None)._model.save(str(source / "tokenizer.json"))
    (source / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    main(["convert", "--from", str(source), "--to", str(tmp_path / "ours")])
    asked = [ask("--max_new_tokens", "5", run=folder) for folder in (source, tmp_path / "ours")]
    assert asked[0]["answer"] == asked[1]["answer"]
    assert asked[0]["tokens"] == asked[1]["tokens"]
    told = refused(capsys, "--checkpoint", str(source), "--max_new_tokens", "59")
    assert "the prompt has 6 tokens and the answer may have 59 (max_new_tokens), together more than the 64" in told


@pytest.mark.slow
@pytest.mark.quick
def test_an_omni_hugging_face_folder_answers_on_all_media_as_what_is_converted_from_it(tmp_path, folder, ask):
    hf = hf_config()
    hf["text_config"]["vocab_size"] = 288
    source = write_folder(tmp_path / "hf", hf, tensors_of(hf))
    load_tokenizer(None)._model.save(str(source / "tokenizer.json"))
    (source / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    main(["convert", "--from", str(source), "--to", str(tmp_path / "ours")])
    all_media = [word for kind in ("image", "audio", "video") for word in media(folder, kind)]
    asked = [ask(*all_media, "--max_new_tokens", "5", run=run) for run in (source, tmp_path / "ours")]
    assert asked[0]["answer"] == asked[1]["answer"]
    assert asked[0]["tokens"] == asked[1]["tokens"] > 0
