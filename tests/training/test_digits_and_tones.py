"""The demonstration that must see and hear: its settings fit its data, and it learns from both."""

import json

import pytest

from hetjax.cli import train_main
from hetjax.config.build_loader import make_loader
from hetjax.config.run_config import load_config
from hetjax.data import eval_batches, write_digits_and_tones
from tests.harness.paths import ROOT

CONFIG = str(ROOT / "configs" / "digits_and_tones.yaml")
ONE_DEVICE = [
    *("--placement.vision.devices", "0", "--placement.vision.data", "1"),
    *("--placement.audio.devices", "0", "--placement.audio.data", "1"),
    *("--placement.llm.devices", "0", "--placement.llm.data", "1", "--placement.llm.tensor", "1"),
    *("--microbatches", "1"),
]


def arguments(tmp_path, samples, held_out):
    data = write_digits_and_tones(tmp_path / "data", samples=samples, held_out=held_out)
    return ["--config", CONFIG, "--data.train", str(data / "train.jsonl"), "--data.eval", str(data / "heldout.jsonl")]


def test_every_sample_of_the_demonstration_fits_its_settings(tmp_path):
    config, _ = load_config(arguments(tmp_path, 40, 13))
    loader = make_loader(config.data, config.model)
    rows = [[loader.load(loader.trained.joined, i)] for i in range(40)]
    arrays = loader.collate(rows)
    for module, ports in loader.shapes(training=True).items():
        assert {port: (array.shape[1:], array.dtype) for port, array in arrays[module].items()} == {
            port: (spec.shape, spec.dtype) for port, spec in ports.items()
        }
    batches = list(eval_batches(loader, 13, by="task"))
    assert [batch.bad for batch in batches] == [()] * 3
    assert sorted(sum((batch.groups for batch in batches), ())) == ["heard"] * 13 + ["seen"] * 13 + ["sum"] * 13
    # Each answer with what ends it.
    assert max(len(loader.tokenizer.encode(a)) for batch in batches for a in batch.answers) < config.eval.max_new_tokens


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_it_learns_what_it_sees_and_knows_no_more_of_it_with_blank_pictures(tmp_path, capsys):
    """A shorter run than the demonstration, on one device: it reads most digits, and has yet to learn to add."""
    command = arguments(tmp_path, 1500, 100)
    changes = ["--steps", "200", "--data.batch_size", "32", "--eval.every", "null", "--profile_every", "null"]
    train_main([*command, *changes, *ONE_DEVICE, "--run_dir", str(tmp_path / "run")])
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval/task/seen"] > 0.5
    assert last["eval/blank_image/task/seen"] < 0.25
    assert abs(last["eval/blank_audio/task/seen"] - last["eval/task/seen"]) < 0.1
    printed = capsys.readouterr().out
    assert all(each in printed for each in ("image blanked", "audio blanked", "waiting for data took"))
