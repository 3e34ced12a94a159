"""What a profile names actions, and which steps it is of (tests/training/test_observed_run.py makes one)."""

import pytest

from hetjax.config.profile_config import ProfileConfig
from hetjax.errors import ConfigError
from hetjax.schedule import Kind
from hetjax.schedule.actions import Action, Part
from hetjax.training.observers.profile import row_name


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


def test_steps_behind_the_end_of_the_run_are_refused(make_config):
    assert make_config("--profile.steps", "9-10").profile.range[-1] == 10
    with pytest.raises(ConfigError, match=r"profile\.steps is 10-11, but the run has 10 steps"):
        make_config("--profile.steps", "10-11")
