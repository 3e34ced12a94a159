"""A profile of some steps has the names of modules, stages and microbatches on its rows."""

import pytest
from jax.profiler import ProfileData

from hetjax.cli import train_main
from hetjax.config.profile_config import ProfileConfig
from hetjax.errors import ConfigError
from hetjax.schedule import Kind
from hetjax.schedule.actions import Action, Part
from hetjax.training.observers.profile import row_name
from tests.harness.digits_run import CONFIG, ONE_DEVICE, write_dataset
from tests.harness.paths import ROOT


def test_the_steps_asked_for_are_traced_by_stage_microbatch_and_module(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    data = str(write_dataset(tmp_path / "data", samples=16))
    arguments = [
        *("--config", CONFIG, "--data.train", data, "--data.eval", "null", "--run_dir", str(tmp_path / "run")),
        *("--data.batch_size", "8", "--steps", "4", "--profile.steps", "2-3", *ONE_DEVICE, "--microbatches", "2"),
        *("--model.llm.layers", "1", "--model.vision.layers", "1"),
    ]
    train_main(arguments)
    assert f"profile of steps 2-3 is in {tmp_path / 'run' / 'profile'}" in " ".join(capsys.readouterr().out.split())
    (path,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    names, steps, programs = set(), set(), set()
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                names.add(event.name)
                stats = dict(event.stats)
                steps |= {stats["step_num"]} if event.name == "train" else set()
                programs |= {stats["hlo_module"]} if "hlo_module" in stats else set()
    assert steps == {2, 3}
    dispatched = {f"{stage} {what} microbatch {i}" for i in (0, 1) for stage in ("vision", "llm") for what in KINDS}
    assert dispatched | {"vision update", "llm update"} <= names
    assert {"vision.tokens->llm.image_tokens activation microbatch 1"} <= names
    assert {"jit_vision_forward", "jit_vision_backward", "jit_llm_forward", "jit_llm_backward"} <= programs


KINDS = ("forward", "backward")


def test_rows_are_named_by_what_an_action_does():
    assert row_name(Action(Kind.BACKWARD_WEIGHT, "llm.1", 3)) == "llm.1 backward of weight microbatch 3"
    assert row_name(Action(Kind.TRANSFER, "llm", 0, edge="v->llm", backward=True)) == "v->llm gradient microbatch 0"
    assert row_name(Action(Kind.OFFLOAD, "vision", part=Part.WEIGHTS)) == "vision offload weights"


def test_which_steps():
    assert ProfileConfig().range == range(0)
    assert list(ProfileConfig(steps="10-12").range) == [10, 11, 12] and list(ProfileConfig(steps=7).range) == [7]
    for wrong in ("12-10", "0-3", "a", "1,2"):
        with pytest.raises(ConfigError, match=rf"profile\.steps is '{wrong}'; give the first and the last step"):
            ProfileConfig(steps=wrong)
