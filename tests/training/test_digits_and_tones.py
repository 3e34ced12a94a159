"""The demonstration that must see and hear: its settings fit its data."""

from hetjax.config.build_loader import make_loader
from hetjax.config.run_config import load_config
from hetjax.data import eval_batches, write_digits_and_tones
from tests.harness.paths import ROOT

CONFIG = str(ROOT / "configs" / "digits_and_tones.yaml")


def arguments(tmp_path, samples, held_out):
    data = write_digits_and_tones(tmp_path / "data", samples=samples, held_out=held_out)
    return ["--config", CONFIG, "--data.train", str(data / "train.jsonl"), "--data.eval", str(data / "heldout.jsonl")]


def test_every_sample_of_the_demonstration_fits_its_settings(tmp_path):
    config, _ = load_config(arguments(tmp_path, 40, 13))
    loader = make_loader(config.data, config.model)
    rows = [[loader.load(loader.trained.joined, i)] for i in range(40)]
    arrays = loader.collate(rows, loader.processor.capacity)
    for module, ports in loader.shapes(training=True).items():
        assert {port: (array.shape[1:], array.dtype) for port, array in arrays[module].items()} == {
            port: (spec.shape, spec.dtype) for port, spec in ports.items()
        }
    batches = list(eval_batches(loader, 13, by="task"))
    assert [batch.bad for batch in batches] == [()] * 3
    assert sorted(sum((batch.groups for batch in batches), ())) == ["heard"] * 13 + ["seen"] * 13 + ["sum"] * 13
    # Each answer with what ends it.
    assert (
        max(len(loader.tokenizer.encode(a)) for batch in batches for (a,) in batch.expected)
        < config.eval.max_new_tokens
    )
