"""The modules of a model from settings: a preset's, those with a setting of their own, and encoders by name."""

import pytest
import yaml

from hetjax.config.model_config import ModelConfig
from hetjax.config.run_config import load_config
from hetjax.data.source_config import train_sources
from hetjax.errors import ConfigError
from hetjax.models import ClipConfig, ParakeetConfig, RadioConfig, Siglip2Config, VisionConfig
from hetjax.models.presets import find_preset
from tests.harness.paths import ROOT

TINY = find_preset("nemotron_3_nano_omni_tiny")


def test_further_encoders_stand_between_those_with_a_name_and_the_language_model():
    encoders = "{radar: {type: parakeet, width: 32, layers: 1, heads: 4, mlp_width: 64, mel_bins: 16, "
    encoders += "subsampling_channels: 8, projector_width: 64, output_width: 64}}"
    config, resolved = load_config(["--config", str(ROOT / "configs/omni_tiny.yaml"), "--model.encoders", encoders])
    assert list(config.model.components) == ["vision", "audio", "radar", "llm"]
    assert isinstance(config.model.components["radar"], ParakeetConfig)
    assert "radar" in resolved


SIZES = "patch_size: 4, width: 32, layers: 1, heads: 4, mlp_width: 64, projector_width: 64"


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("type: siglip2", Siglip2Config),
        ("type: siglip2, image_size: 224, position_side: 56", Siglip2Config),
        ("type: clip, image_size: 224", ClipConfig),
        ("type: radio", RadioConfig),
        ("type: vit, image_size: 224", VisionConfig),
        ("image_size: 224", VisionConfig),
    ],
)
def test_an_encoder_is_of_the_kind_that_its_settings_name(given, kind):
    width = TINY["llm"].width
    text = f"{{{given}, {SIZES}, output_width: {width}}}"
    config, resolved = load_config(["--config", str(ROOT / "configs/omni_tiny.yaml"), "--model.vision", text])
    assert type(config.model.vision) is kind
    assert yaml.safe_load(resolved)["model"]["vision"]["type"] == config.model.vision.type


def test_the_kind_of_an_encoder_is_not_guessed_from_its_fields():
    text = f"{{{SIZES}, position_side: 56, output_width: {TINY['llm'].width}}}"
    for name, place in (("vision", "vision"), ("encoders", "encoders.other")):
        given = text if name == "vision" else f"{{other: {text}}}"
        with pytest.raises(ConfigError, match=rf"model.{place} does not say .* give model.{place}.type: vit, radio, "):
            load_config(["--config", str(ROOT / "configs/omni_tiny.yaml"), f"--model.{name}", given])


def test_the_settings_of_given_modules_are_those_modules():
    components = {"vision": TINY["vision"], "radar": TINY["audio"], "llm": TINY["llm"]}
    assert ModelConfig.of(components).components == components
    assert ModelConfig.of({"llm": TINY["llm"]}).components == {"llm": TINY["llm"]}


def test_a_module_is_named_once():
    with pytest.raises(ConfigError, match=r"model.encoders names audio, .*; give model.audio"):
        ModelConfig(encoders={"audio": TINY["audio"]}, llm=TINY["llm"])
    with pytest.raises(ConfigError, match=r"model.radar.output_width is 64, but model.llm.width is"):
        ModelConfig(preset="nemotron_3_nano_omni_300m", encoders={"radar": TINY["audio"]})


def test_settings_of_data_come_back_as_they_were_written(tmp_path):
    """Names that read as numbers stay texts."""
    train = [{"path": "a.jsonl", "name": "1", "split": "2024"}, {"path": "b.jsonl", "columns": {"messages": "0"}}]
    settings = yaml.safe_load((ROOT / "configs/omni_tiny.yaml").read_text())
    settings["data"] |= {"train": train, "eval": {"share": 0.1}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    config, resolved = load_config(["--config", str(tmp_path / "run.yaml")])
    (tmp_path / "config.yaml").write_text(resolved)
    again, same = load_config(["--config", str(tmp_path / "config.yaml")])
    assert again == config and same == resolved
    assert train_sources(again.data.train)[0].name == "1" and again.data.eval == {"share": 0.1}
