"""The options of train.py beside the settings of a run."""

import pytest

from hetjax.config.target_options import TargetOptions, take_target_options
from hetjax.errors import ConfigError


def test_they_are_taken_out_of_the_command_line_wherever_they_stand(tmp_path):
    out = tmp_path / "r.json"
    words = ["--target", "h100x8", "--config", "x.yaml", "--only=llm.0", "--json", str(out), "--steps", "2"]
    options, others = take_target_options(words)
    assert options == TargetOptions(target="h100x8", only="llm.0", json=str(out))
    assert others == ["--config", "x.yaml", "--steps", "2"]


def test_a_training_run_has_none():
    assert take_target_options(["--config", "x.yaml"]) == (None, ["--config", "x.yaml"])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--only", "llm"], ["--only", "without --target"]),
        (["--target"], ["--target", "--help"]),
        (["--target", "h100x8", "--json", "nowhere/at/all.json"], ["--json nowhere/at/all.json", "folder"]),
    ],
)
def test_what_makes_no_sense_is_refused(words, named):
    with pytest.raises(ConfigError) as error:
        take_target_options(words)
    assert all(word in str(error.value) for word in named)
