"""What no evaluation gives is refused (tests/training/test_observed_run.py evaluates a checkpoint)."""

import dataclasses
import json

import pytest
import yaml

from hetjax.cli import main, train_main
from hetjax.data import load_tokenizer
from hetjax.models.huggingface.families import find_family
from tests.harness.digits_run import CONFIG, ONE_DEVICE, write_dataset
from tests.harness.huggingface.folders import LLAMA, tensors_of, write_folder
from tests.harness.paths import ROOT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("--best_checkpoint.metric", "eval/wer"),
            "best_checkpoint.metric is 'eval/wer', but an evaluation of this run",
        ),
        (("--data.eval", "null", "--best_checkpoint.metric", "eval/loss"), "gives none, as data.eval is null"),
    ],
)
def test_what_no_evaluation_gives_is_refused_before_training(tmp_path, capsys, monkeypatch, changes, message):
    monkeypatch.chdir(ROOT)
    data = str(write_dataset(tmp_path / "data"))
    paths = ["--data.train", data, "--data.eval", data, "--run_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        train_main(["--config", CONFIG, *paths, "--data.batch_size", "8", *ONE_DEVICE, *changes])
    assert stop.value.code == 2 and message in " ".join(capsys.readouterr().err.split())


def test_a_folder_without_settings_needs_them(tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--checkpoint", str(tmp_path)])
    assert stop.value.code == 2


@pytest.mark.slow
@pytest.mark.quick
def test_a_hugging_face_folder_is_evaluated_as_what_is_converted_from_it_and_needs_all_modules(tmp_path, capsys):
    hf = {**LLAMA, "vocab_size": 288, "max_position_embeddings": 64}
    source = write_folder(tmp_path / "hf", hf, tensors_of(hf))
    load_tokenizer(None)._model.save(str(source / "tokenizer.json"))
    main(["convert", "--from", str(source), "--to", str(tmp_path / "ours")])
    turns = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "two"}]
    (tmp_path / "held.jsonl").write_text(5 * (json.dumps({"messages": turns}) + "\n"))
    llm = dataclasses.asdict(find_family(hf).configs(hf)["llm"])
    settings = {
        "name": "hf", "steps": 1, "model": {"llm": llm}, "placement": {"llm": {"devices": "0-1", "data": 2}},
        "data": {"train": "none.jsonl", "eval": str(tmp_path / "held.jsonl"), "seq_len": 48, "batch_size": 4},
        "optimizer": {"learning_rate": 0.1}, "eval": {"max_new_tokens": 3, "metrics": ["exact_match", "wer"]},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))

    def found(folder, *more):
        capsys.readouterr()
        main(["evaluate", "--config", str(tmp_path / "run.yaml"), "--checkpoint", str(folder), "--json", *more])
        return json.loads(capsys.readouterr().out)

    theirs, ours = found(source), found(tmp_path / "ours")
    assert theirs.pop("checkpoint") != ours.pop("checkpoint")
    assert theirs == ours and set(theirs) == {"step", "eval/loss", "eval/accuracy", "eval/wer"}
    vision = "{image_size: 8, patch_size: 4, width: 16, layers: 1, heads: 2, mlp_width: 32, projector_width: 32}"
    more = ["--model.vision", vision, "--model.vision.output_width", str(llm["width"]), "--data.processor.images", "1"]
    with pytest.raises(SystemExit) as stop:
        found(source, *more, "--placement.vision.devices", "0")
    assert stop.value.code == 2
    assert "holds llm, but the model has a vision too" in " ".join(capsys.readouterr().err.split())
