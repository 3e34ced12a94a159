"""Llama and Qwen3: their checkpoints and config.json in and out, and their numbers as transformers made them."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from hetjax.models import DecoderConfig, LanguageModel, ModelError, MoEConfig
from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.llama import llama_config, llama_entries, llama_hf_config
from hetjax.models.huggingface.qwen3 import qwen3_config, qwen3_entries, qwen3_hf_config
from tests.harness.huggingface.decoders import (
    CONFIGS,
    LLAMA_3,
    config_of,
    entries_of,
    hf_config_of,
    logits,
    loss_and_gradients,
)
from tests.harness.huggingface.whole_models import read_arrays, write_tensors
from tests.harness.paths import GOLDEN


def error(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", ["llama", "llama-3", "qwen3", "qwen3-moe"])
def test_numbers_equal_those_of_transformers(name):
    hf, held = CONFIGS[name], load_file(GOLDEN / f"{name}.safetensors")
    part = lambda kind: {k.removeprefix(f"{kind}."): v for k, v in held.items() if k.startswith(f"{kind}.")}  # noqa: E731
    given, output, wanted = part("input"), part("output"), part("gradient")
    weights = {key: value for key, value in held.items() if not key.startswith(("input.", "output.", "gradient."))}
    prompt = 9
    made = logits(hf, weights, given["tokens"], prompt=prompt)
    assert error(made[:, prompt - 1 :], output["logits"][:, prompt - 1 :]) < 2e-5
    loss, gradients = loss_and_gradients(hf, weights, given)
    assert error(loss, output["loss"]) < 2e-5
    assert gradients.keys() == wanted.keys()
    for key, gradient in gradients.items():
        assert error(gradient, wanted[key]) < 1e-4, key


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_comes_out_as_it_went_in(name):
    config = config_of(CONFIGS[name])
    entries = entries_of(CONFIGS[name], config, prefix="language_model.")
    shapes = arrays_by_path(nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(0)
    filled = {path: random.normal(size=shape.shape).astype(np.float32) for path, shape in shapes.items()}
    tensors = write_tensors(entries, filled)
    assert all(name.startswith(("language_model.model.", "language_model.lm_head.")) for name in tensors)
    assert sum(tensor.size for tensor in tensors.values()) == sum(array.size for array in filled.values())
    arrays = read_arrays(entries, tensors, shapes)
    assert arrays.keys() == shapes.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(array, filled[path])


@pytest.mark.parametrize("name", CONFIGS)
def test_config_json_comes_out_as_it_went_in(name):
    config = config_of(CONFIGS[name])
    written = hf_config_of(CONFIGS[name], config)
    assert config_of(written) == config
    given = {key: value for key, value in CONFIGS[name].items() if key != "intermediate_size"}
    assert {key: written[key] for key in given} == given


def test_a_released_config_json_is_understood():
    """Llama 3.2 1B as Meta released it, with keys that do not concern the model left out."""
    theirs = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {**LLAMA_3, "factor": 32.0, "original_max_position_embeddings": 8192}, "rope_theta": 500000.0,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": 128256,
    }  # fmt: skip
    config = llama_config(theirs)
    assert (config.width, config.layers, config.kv_heads, config.rope_theta) == (2048, 16, 8, 500000.0)
    assert config.tie_embeddings and config.rope_scaling.factor == 32 and config.rope_scaling.original_length == 8192
    in_transformers_5 = {key: value for key, value in theirs.items() if not key.startswith("rope_")}
    in_transformers_5["rope_parameters"] = {**theirs["rope_scaling"], "rope_theta": 500000.0}
    assert llama_config(in_transformers_5) == config


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("llama", {"attention_bias": True}, "attention_bias = True is not supported"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported; it must be 'silu'"),
        ("llama", {"model_type": "mistral"}, "model_type = 'mistral'"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2}}, "rope_type = 'linear'"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "scaling lacks low_freq_factor"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layers of sliding_attention"),
        ("qwen3-moe", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        ("qwen3-moe", {"mlp_only_layers": [0]}, r"mlp_only_layers = \[0\]"),
    ],
)
def test_what_is_not_built_is_refused(name, change, told):
    read = llama_config if name == "llama" else qwen3_config
    with pytest.raises(ModelError, match=told):
        read({**CONFIGS[name], **change})


def test_keys_that_lack_are_named():
    for name, key in (("llama", "hidden_size"), ("qwen3-moe", "num_experts"), ("qwen3-moe", "moe_intermediate_size")):
        with pytest.raises(ModelError, match=f"lacks {key}"):
            config_of({k: v for k, v in CONFIGS[name].items() if k != key})


def test_a_decoder_that_is_no_llama_or_qwen_is_not_written_as_one():
    plain = DecoderConfig(vocab_size=8, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8)
    normed = dataclasses.replace(plain, query_key_norm=True)
    for write in (llama_hf_config, llama_entries):
        with pytest.raises(ModelError, match="query_key_norm = True; write it as a Qwen3"):
            write(normed)
    for write in (qwen3_hf_config, qwen3_entries):
        with pytest.raises(ModelError, match="set query_key_norm=True"):
            write(plain)
        with pytest.raises(ModelError, match="scores = 'sigmoid' instead of 'softmax'"):
            write(dataclasses.replace(normed, experts=MoEConfig(count=4, top_k=2, scores="sigmoid")))
