"""The experts of a language model in YAML and on the command line."""

import pytest
import yaml

from hetjax.config.run_config import load_config
from hetjax.models import ModelError, MoEConfig
from tests.harness.paths import ROOT

DIGITS = ROOT / "configs" / "digits.yaml"


def test_experts_from_yaml_and_the_command_line(tmp_path):
    assert load_config(["--config", str(DIGITS)])[0].model.llm.experts is None
    settings = yaml.safe_load(DIGITS.read_text())
    settings["model"]["llm"]["experts"] = {"count": 8, "top_k": 2, "scores": "sigmoid", "bias_rate": 0.001}
    path = tmp_path / "experts.yaml"
    path.write_text(yaml.safe_dump(settings))
    config, resolved = load_config(["--config", str(path), "--model.llm.experts.top_k", "3"])
    assert config.model.llm.experts == MoEConfig(count=8, top_k=3, scores="sigmoid", bias_rate=0.001)
    again = tmp_path / "resolved.yaml"
    again.write_text(resolved)
    assert load_config(["--config", str(again)])[0] == config
    arguments = ["--model.llm.experts.count", "4", "--model.llm.experts.top_k", "1"]
    config, _ = load_config(["--config", str(DIGITS), *arguments])
    assert config.model.llm.experts == MoEConfig(count=4, top_k=1)


def test_experts_that_cannot_be_are_refused_with_the_reason():
    with pytest.raises(ModelError, match="top_k <= count must hold, but 5 > 4"):
        load_config(["--config", str(DIGITS), "--model.llm.experts", "{count: 4, top_k: 5}"])
