"""The omni-modal family: what the release consists of, and what its quantized forms quantize."""

import dataclasses
import math
import re

import pytest
from flax import nnx

from hetjax.models import ModelError
from hetjax.models.huggingface.families import FAMILIES, find_family
from hetjax.models.huggingface.omni import omni_configs, omni_entries, omni_hf_config
from hetjax.models.huggingface.tensor_files.precision import quantization_config, quantized_forms
from tests.harness.huggingface.omni_configs import RELEASE, TINY


def parameters(module: nnx.Module) -> int:
    return sum(math.prod(leaf.get_value().shape) for _, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param)))


def test_the_released_config_describes_every_parameter_of_the_release():
    family = find_family(RELEASE)
    configs = family.read_config(RELEASE)
    sizes = {name: parameters(family.module(name, configs)) for name in configs}
    assert sizes["llm"] == 31_577_937_344
    assert sizes["vision"] == 653_611_520 + 159_912_960
    assert sizes["audio"] == 608_879_616 + 15_205_376
    assert sum(sizes.values()) == 33_015_546_816


@pytest.fixture(scope="module")
def names():
    entries = omni_entries(omni_configs(RELEASE))
    return [name for module in entries.values() for entry in module for name in entry.names]


def test_the_nvfp4_release_has_5888_nvfp4_and_98_fp8_modules(names):
    forms = quantized_forms(names, "nvfp4", "language_model.")
    assert list(forms.values()).count("nvfp4") == 5888
    assert list(forms.values()).count("fp8") == 98
    kinds = {re.sub(r"\.\d+\.", ".N.", name.removeprefix("language_model.backbone.layers.")) for name in forms}
    assert {re.sub(r"^\d+\.mixer\.", "", kind) for kind in kinds} == {
        "experts.N.up_proj.weight", "experts.N.down_proj.weight", "shared_experts.up_proj.weight",
        "shared_experts.down_proj.weight", "in_proj.weight", "out_proj.weight", "o_proj.weight",
    }  # fmt: skip


def test_the_fp8_release_quantizes_every_linear_map_but_router_and_head(names):
    forms = quantized_forms(names, "fp8", "language_model.")
    assert set(forms.values()) == {"fp8"}
    # Two of each Mamba, four of each attention, two of each expert and of the shared one.
    assert len(forms) == 23 * 2 + 6 * 4 + 23 * (128 + 1) * 2
    ignored = quantization_config(forms, names, {})["ignore"]
    assert {"language_model.lm_head", "language_model.backbone.layers.1.mixer.gate", "mlp1.1"} <= set(ignored)
    assert not [name for name in forms if not name.startswith("language_model.backbone.layers.")]


def test_the_layers_of_mixed_precision_are_named_as_the_release_names_them(names):
    config = quantization_config(quantized_forms(names, "nvfp4", "language_model."), names, {})
    layers = config.pop("quantized_layers")
    groups = config.pop("config_groups")
    assert config == {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
        "producer": {"name": "hetjax"},
        "ignore": [],
    }
    assert layers["language_model.backbone.layers.1.mixer.experts.5.up_proj"] == {
        "quant_algo": "NVFP4", "group_size": 16,
    }  # fmt: skip
    assert layers["language_model.backbone.layers.0.mixer.in_proj"] == {"quant_algo": "FP8"}
    assert sorted(layers) == sorted(module for group in groups.values() for module in group["targets"])


def test_both_namings_of_config_json_mean_the_same():
    renamed = {"text_config": "llm_config", "audio_config": "sound_config", "vision_hidden_size": "vit_hidden_size"}
    assert omni_configs({renamed.get(key, key): value for key, value in TINY.items()}) == omni_configs(TINY)


def test_a_config_comes_back_from_what_is_written_of_it():
    for hf in (TINY, RELEASE):
        configs = omni_configs(hf)
        assert omni_configs(omni_hf_config(configs)) == configs
        assert find_family(omni_hf_config(configs)) is FAMILIES["nemotron_h_omni"]


def test_a_config_without_a_part_is_refused():
    with pytest.raises(ModelError, match="lacks text_config"):
        omni_configs({"model_type": "nemotron_h_omni"})
    with pytest.raises(ModelError, match="there is no audio"):
        omni_hf_config({**omni_configs(TINY), "audio": None})
    without = {key: value for key, value in TINY.items() if key != "audio_config"}
    assert sorted(omni_configs(without)) == ["llm", "vision"]
    assert dataclasses.is_dataclass(omni_configs(without)["vision"])
