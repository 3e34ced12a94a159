"""The tree of a model, and what its components cost."""

import json

import pytest

from hetjax.cli import main
from hetjax.models.presets import PRESETS
from tests.harness.paths import ROOT


def numbers(capsys, *arguments: str) -> dict:
    main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_full_size_has_the_parameters_of_the_released_model(capsys):
    """Sums of the tensors of the release, e.g. of `mlp1`: 5120 + 5120 * 20480 + 20480 * 2688."""
    found = numbers(capsys, "model", "nemotron_3_nano_omni", "--depth", "1")
    assert found["parameters"] == 33_015_546_816
    parts = {name: component["parts"] for name, component in found["components"].items()}
    assert found["components"]["llm"]["parameters"] == 31_577_937_344
    assert parts["vision"]["projector"] == 159_912_960
    assert found["components"]["vision"]["parameters"] - parts["vision"]["projector"] == 653_611_520
    assert parts["audio"]["projector"] == 15_205_376
    assert found["components"]["audio"]["parameters"] - parts["audio"]["projector"] == 608_879_616


@pytest.mark.parametrize("name", PRESETS)
def test_the_parts_of_every_model_add_up(capsys, name):
    found = numbers(capsys, "model", name, "--depth", "1")
    for component in found["components"].values():
        assert sum(component["parts"].values()) == component["parameters"]
    assert sum(component["parameters"] for component in found["components"].values()) == found["parameters"]


def test_the_model_of_a_run_by_its_file(capsys):
    """The language model has the parameters of Llama 3.2 3B."""
    found = numbers(capsys, "model", str(ROOT / "configs" / "bench" / "vlm.yaml"), "--depth", "0")
    counts = {name: component["parameters"] for name, component in found["components"].items()}
    assert counts["llm"] == 3_212_749_824 and 1.0e9 < counts["vision"] < 1.05e9


def test_deeper_parts_add_up_to_those_above(capsys):
    found = numbers(capsys, "model", "nemotron_3_nano_omni_tiny", "--depth", "2")
    parts = found["components"]["vision"]["parts"]
    below = sum(count for part, count in parts.items() if part.startswith("projector/"))
    assert below == parts["projector"]


def test_the_tree_is_shown_with_its_numbers(capsys):
    main(["model", "nemotron_3_nano_omni_tiny", "--depth", "0"])
    shown = capsys.readouterr().out
    assert "nemotron_3_nano_omni_tiny: 328,264 parameters" in shown and "vision: 42,624" in shown
    assert "layers" not in shown


def test_an_unknown_model_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["model", "nemotron_4"])
    assert ending.value.code == 2
    assert "there is no model 'nemotron_4'; the models are nemotron_3_nano_omni" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.quick
def test_components_are_timed_and_their_arithmetic_counted(capsys):
    options = ("--tokens", "32", "--clip_seconds", "1", "--dtype", "float32", "--timed", "1", "--remat", "none")
    found = numbers(capsys, "bench", "model", "--model", "nemotron_3_nano_omni_tiny", *options)
    assert list(found["components"]) == ["vision", "audio", "llm"]
    for row in found["components"].values():
        assert row["seconds"] > 0 and row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
    llm = found["components"]["llm"]
    head = 2 * 64 * 320
    assert llm["tokens"] == 32 and llm["flops_per_token"] > 3 * head
