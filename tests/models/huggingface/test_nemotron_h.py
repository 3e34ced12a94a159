"""Nemotron-H: its checkpoints and config.json in and out, and its numbers as transformers made them."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from hetjax.models import ModelError
from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.nemotron_h import nemotron_h_config, nemotron_h_entries, nemotron_h_hf_config
from hetjax.models.nemotron_h import NemotronH
from tests.harness.huggingface.hybrids import CONFIGS, config_of, logits, loss_and_gradients
from tests.harness.huggingface.whole_models import read_arrays, write_tensors
from tests.harness.paths import GOLDEN

PROMPT = 4


def error(got, want):
    """Relative to the largest entry; experts that no token chose have gradients of 0."""
    return np.abs(got - want).max() / (np.abs(want).max() or 1)


def test_numbers_equal_those_of_transformers():
    hf, held = CONFIGS["hybrid"], load_file(GOLDEN / "nemotron_h.safetensors")
    part = lambda kind: {k.removeprefix(f"{kind}."): v for k, v in held.items() if k.startswith(f"{kind}.")}  # noqa: E731
    given, output, wanted = part("input"), part("output"), part("gradient")
    weights = {key: value for key, value in held.items() if not key.startswith(("input.", "output.", "gradient."))}
    # Rows of a prefill, and of training, have a least time step there; rows of single steps have none.
    clamped, free = config_of(hf, min_dt=hf["time_step_min"]), config_of(hf)
    stepped = logits(clamped, weights, given["tokens"], prompt=PROMPT, steps=free)
    assert error(stepped[:, PROMPT - 1 :], output["stepped"][:, PROMPT - 1 :]) < 2e-5
    loss, gradients = loss_and_gradients(clamped, weights, given)
    assert error(loss, output["loss"]) < 2e-5
    assert gradients.keys() == wanted.keys()
    for key, gradient in gradients.items():
        assert error(gradient, wanted[key]) < 1e-4, key


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_comes_out_as_it_went_in(name):
    config = nemotron_h_config(CONFIGS[name])
    entries = nemotron_h_entries(config, prefix="language_model.")
    shapes = arrays_by_path(nnx.eval_shape(lambda: NemotronH(config, rngs=nnx.Rngs(0))))
    shapes = {path: shape for path, shape in shapes.items() if not path.endswith("/counts")}
    random = np.random.default_rng(0)
    filled = {path: random.normal(size=shape.shape).astype(np.float32) for path, shape in shapes.items()}
    tensors = write_tensors(entries, filled)
    assert all(name.startswith(("language_model.backbone.", "language_model.lm_head.")) for name in tensors)
    assert sum(tensor.size for tensor in tensors.values()) == sum(array.size for array in filled.values())
    arrays = read_arrays(entries, tensors, shapes)
    assert arrays.keys() == shapes.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(array, filled[path])


@pytest.mark.parametrize("name", CONFIGS)
def test_config_json_comes_out_as_it_went_in(name):
    config = nemotron_h_config(CONFIGS[name])
    assert nemotron_h_config(nemotron_h_hf_config(config)) == config


def test_a_pattern_and_a_list_of_kinds_are_the_same():
    listed = CONFIGS["listed"]
    told = {key: value for key, value in listed.items() if key != "layers_block_type"}
    assert nemotron_h_config({**told, "hybrid_override_pattern": "ME*EM"}) == nemotron_h_config(listed)
    older = ["mamba", "moe", "attention", "moe", "mamba"]
    assert nemotron_h_config({**told, "layers_block_type": older}) == nemotron_h_config(listed)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mlp_bias": True}, "mlp_bias = True is not supported"),
        ({"moe_latent_size": 8}, "moe_latent_size = 8"),
        ({"n_group": 2}, "n_group = 2"),
        ({"sliding_window": 128}, "sliding_window = 128"),
        ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers = 1"),
        ({"layers_block_type": ["rwkv"]}, "layers of rwkv"),
        ({"hybrid_override_pattern": None}, "lacks hybrid_override_pattern"),
        ({"mamba_num_heads": None}, "lacks mamba_num_heads"),
    ],
)
def test_what_is_not_built_is_refused(change, told):
    with pytest.raises(ModelError, match=told):
        nemotron_h_config({**CONFIGS["hybrid"], **change})


def test_what_their_files_cannot_hold_is_not_written():
    config = nemotron_h_config(CONFIGS["hybrid"])
    experts, mamba = config.experts, config.mamba
    for changes, told in (
        ({"tie_embeddings": True}, "tie_embeddings=False"),
        ({"mamba": dataclasses.replace(mamba, norm_epsilon=1e-3)}, "one epsilon for all norms"),
        ({"experts": dataclasses.replace(experts, bias_rate=None)}, "bias_rate = None"),
        ({"experts": dataclasses.replace(experts, scores="softmax")}, "scores = 'softmax' instead of 'sigmoid'"),
    ):
        for write in (nemotron_h_entries, nemotron_h_hf_config):
            with pytest.raises(ModelError, match=told):
                write(dataclasses.replace(config, **changes))
