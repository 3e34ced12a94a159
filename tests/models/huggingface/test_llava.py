"""LLaVA against what transformers made of the same pictures and words, and its config.json."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from hetjax.models import ModelError
from hetjax.models.huggingface.families import FAMILIES
from hetjax.models.presets import find_preset
from tests.harness.huggingface.llava_model import CONFIG, TEXT, TOWER, our_batch
from tests.harness.huggingface.vision_language import logits, loss_and_gradients, modules_of
from tests.harness.parity.oracle import relative_error
from tests.harness.paths import GOLDEN

FAMILY = FAMILIES["llava"]


def test_logits_loss_and_gradients_equal_transformers():
    tensors = load_file(GOLDEN / "llava.safetensors")
    named = lambda kind: {name.removeprefix(kind): each for name, each in tensors.items() if name.startswith(kind)}  # noqa: E731
    modules, batch = modules_of(CONFIG, named("weight.")), our_batch(named("input."))
    assert relative_error(logits(modules, batch), tensors["output.logits"]) < 2e-5
    loss, gradients = loss_and_gradients(CONFIG, modules, batch)
    assert relative_error(loss, tensors["output.loss"]) < 2e-5
    wanted = named("gradient.")
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        # That of a key's bias is zero but for rounding: measured against that of the query's.
        largest = np.abs(wanted[name.replace("k_proj.bias", "q_proj.bias")]).max()
        assert np.abs(gradient - wanted[name]).max() / largest < 1e-4, name


def test_the_released_config_json_is_understood():
    """LLaVA-1.5 7B as released: what is Llama's default is left out."""
    released = {
        "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000,
        "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "tie_word_embeddings": False, "torch_dtype": "float16",
        "vision_config": {
            "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
            "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vocab_size": 32064,
    }  # fmt: skip
    assert FAMILY.configs(released) == find_preset("llava_1_5_7b")
    assert FAMILY.configs(released)["vision"].tokens_per_image == 576


def test_config_json_comes_back():
    configs = FAMILY.configs(CONFIG)
    assert configs["vision"].layers == 2
    written = FAMILY.write_config(configs)
    assert FAMILY.configs(written) == configs
    assert (written["vision_feature_layer"], written["vision_config"]["num_hidden_layers"]) == (-1, 2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vision_feature_layer": 0}, "vision_feature_layer = 0 of 3 layers is not supported; it must be from 1 to 3"),
        ({"vision_feature_layer": -4}, "vision_feature_layer = -4"),
        ({"vision_feature_layer": [-2, -1]}, r"vision_feature_layer = \[-2, -1\] is not supported; it must be one"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy = 'full' is not supported"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias = False"),
        ({"text_config": {**TEXT, "model_type": "mistral"}}, "only llama and clip_vision_model are supported"),
        ({"vision_config": {**TOWER, "hidden_act": "gelu"}}, "hidden_act = 'gelu' is not supported"),
        ({"tile_size": 512}, "tile_size = 512 is not known here"),
    ],
)
def test_what_is_not_built_is_refused(change, told):
    with pytest.raises(ModelError, match=told):
        FAMILY.configs({**CONFIG, **change})


def test_modules_that_are_no_llava_are_not_written_as_one():
    configs = FAMILY.configs(CONFIG)
    with pytest.raises(ModelError, match="give it type: clip and projector_width = output_width"):
        FAMILY.write_config({**configs, "vision": find_preset("nemotron_3_nano_omni_tiny")["vision"]})
