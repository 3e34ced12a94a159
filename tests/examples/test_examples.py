"""The examples fit on a screen, run on two meshes, and learn what they say."""

import importlib.util

import pytest

from tests.harness.paths import ROOT

PATHS = sorted((ROOT / "examples").glob("*.py"))


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_eighty_lines_at_most():
    assert {"contrastive", "diffusion_head", "two_losses"} <= {path.stem for path in PATHS}
    lines = {path.stem: len(path.read_text().splitlines()) for path in PATHS}
    assert max(lines.values()) <= 80, lines


def test_two_encoders_learn_which_picture_goes_with_which_text():
    history = load("contrastive").main(steps=50)
    assert history[0]["contrast/matched"] < 0.2 and history[-1]["contrast/matched"] > 0.7


def test_one_encoder_learns_two_tasks():
    history = load("two_losses").main(steps=40)
    first, last = history[0], history[-1]
    assert last["digit/accuracy"] > 0.9 and last["ink/loss"] < first["ink/loss"] / 2
    assert {step["ink/known"] for step in history} == {16}
    assert last["loss"] == pytest.approx(last["digit/loss"] + 0.5 * last["ink/loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.quick
def test_a_language_model_and_the_diffusion_head_behind_it_learn_together():
    history = load("diffusion_head").main(steps=40)
    first, last = history[0], history[-1]
    assert last["llm/loss"] < first["llm/loss"] / 2 and last["head/loss"] < 0.8 * first["head/loss"]
