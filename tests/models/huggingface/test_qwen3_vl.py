"""Qwen3-VL against what transformers made of the same pictures, film and words, and its config.json."""

import pytest
from safetensors.numpy import load_file

from hetjax.models import ModelError
from hetjax.models.huggingface.families import FAMILIES
from hetjax.models.huggingface.lfm2_vl import lfm2_vl_entries
from hetjax.models.huggingface.qwen3 import qwen3_hf_config
from hetjax.models.presets import find_preset
from tests.harness.huggingface.qwen3_vl_model import CONFIGS, DENSE, TEXT, TOWER, our_batch
from tests.harness.huggingface.vision_language import logits, loss_and_gradients, modules_of
from tests.harness.parity.oracle import relative_error
from tests.harness.paths import GOLDEN

FAMILY = FAMILIES["qwen3_vl"]
# The keys that say numbers of the release of 30 B with 3 B active.
RELEASED = {
    "architectures": ["Qwen3VLMoeForConditionalGeneration"], "image_token_id": 151655, "model_type": "qwen3_vl_moe",
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "decoder_sparse_step": 1,
        "dtype": "bfloat16", "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 262144, "mlp_only_layers": [],
        "model_type": "qwen3_vl_moe_text", "moe_intermediate_size": 768, "norm_topk_prob": True,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000, "use_cache": True, "vocab_size": 151936,
    },
    "tie_word_embeddings": False, "transformers_version": "4.57.0.dev0", "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [8, 16, 24], "depth": 27, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1152,
        "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 4304, "model_type": "qwen3_vl_moe",
        "num_heads": 16, "num_position_embeddings": 2304, "out_hidden_size": 2048, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653, "vision_start_token_id": 151652,
}  # fmt: skip


@pytest.mark.parametrize("name", ["qwen3_vl", pytest.param("qwen3_vl_moe", marks=pytest.mark.slow)])
def test_logits_loss_and_gradients_equal_transformers(name):
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    named = lambda kind: {key.removeprefix(kind): each for key, each in tensors.items() if key.startswith(kind)}  # noqa: E731
    hf, weights = CONFIGS[name], named("weight.")
    modules = modules_of(hf, weights)
    batch = our_batch(modules["vision"].config, named("input."))
    assert relative_error(logits(modules, batch), tensors["output.logits"]) < 2e-5
    loss, gradients = loss_and_gradients(hf, modules, batch, weights)
    assert relative_error(loss, tensors["output.loss"]) < 2e-5
    wanted = named("gradient.")
    assert gradients.keys() == wanted.keys()
    for key, gradient in gradients.items():
        assert relative_error(gradient, wanted[key]) < 1e-4, key


def test_the_released_config_json_is_understood():
    assert FAMILY.configs(RELEASED) == find_preset("qwen3_vl_30b_a3b")


@pytest.mark.parametrize("name", CONFIGS)
def test_config_json_comes_back(name):
    configs = FAMILY.configs(CONFIGS[name])
    written = FAMILY.write_config(configs)
    assert FAMILY.configs(written) == configs and written["model_type"] == name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"text_config": {**TEXT, "hidden_size": 32}},
            "out_hidden_size = 24 of vision_config must be hidden_size = 32",
        ),
        ({"text_config": {**TEXT, "attention_bias": True}}, "attention_bias = True is not supported"),
        (
            {"text_config": {**TEXT, "rope_parameters": {**TEXT["rope_parameters"], "mrope_interleaved": False}}},
            "mrope_interleaved = False is not supported",
        ),
        (
            {"text_config": {**TEXT, "rope_parameters": {**TEXT["rope_parameters"], "mrope_section": [4, 4, 4]}}},
            r"rope_sections = \(4, 4, 4\) must be three numbers of the sum head_dim / 2 = 8",
        ),
        ({"vision_config": {**TOWER, "hidden_act": "silu"}}, "hidden_act = 'silu' is not supported"),
        (
            {"vision_config": {**TOWER, "deepstack_visual_indexes": [2, 0]}},
            r"deepstack = \(2, 0\) must be three or fewer",
        ),
        ({"fps": 2}, "fps = 2 is not known here"),
    ],
)
def test_what_is_not_built_is_refused(change, told):
    with pytest.raises(ModelError, match=told):
        FAMILY.configs({**DENSE, **change})


def test_its_language_model_is_not_written_as_another():
    llm = FAMILY.configs(DENSE)["llm"]
    with pytest.raises(ModelError, match="Qwen3 cannot hold a Qwen3VlConfig"):
        qwen3_hf_config(llm)
    with pytest.raises(ModelError, match=r"Qwen3 cannot hold a Qwen3VlConfig|LFM2-VL takes"):
        lfm2_vl_entries(
            {
                "vision": FAMILIES["lfm2_vl"].kinds["vision"](
                    width=16, layers=1, heads=2, mlp_width=20, projector_width=30, output_width=24
                ),
                "llm": llm,
            }
        )
