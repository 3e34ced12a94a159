"""hetjax bench data: loading is measured, of made samples and of a run's."""

import json

import pytest

from hetjax.cli import main
from hetjax.data import write_shapes
from tests.harness.paths import ROOT


@pytest.mark.slow
def test_made_samples_and_those_of_a_run(tmp_path, capsys):
    write_shapes(tmp_path / "shapes", samples=12)
    capsys.readouterr()
    run = ("--config", str(ROOT / "configs/omni_tiny.yaml"), "--data.train", str(tmp_path / "shapes/train.jsonl"))
    main(["bench", "data", *run, "--samples", "8", "--rounds", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"text", "jpeg", "png", "omni_tiny"}
    assert found["text"]["images_per_sample"] == 0 and found["text"]["tokens_per_sample"] > 500
    for kind in ("jpeg", "png"):
        assert found[kind]["images_per_sample"] == 1 and found[kind]["tokens_per_sample"] > 256
    for each in found.values():
        assert each["tokens_per_core_second"] > 500 and each["samples_per_second"] > 1
