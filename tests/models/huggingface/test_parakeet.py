"""Audio encoders in and out of Hugging Face checkpoints, and equal to stored tensors of transformers."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from hetjax.models import ModelError, ParakeetConfig, ParakeetEncoder
from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.parakeet import (
    PREFIX,
    PROJECTOR,
    parakeet_buffers,
    parakeet_config,
    parakeet_entries,
    parakeet_hf_config,
)
from tests.harness.huggingface.whole_models import read_arrays, write_tensors
from tests.harness.models.tiny_parakeet import from_tensors, value_and_gradients
from tests.harness.parity.oracle import relative_error
from tests.harness.paths import GOLDEN

HF = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, attention_bias=False,
    convolution_bias=False, conv_kernel_size=9, subsampling_factor=8, subsampling_conv_channels=16, num_mel_bins=16,
    scale_input=False, projection_hidden_size=48,
)  # fmt: skip
STORED = load_file(GOLDEN / "parakeet.safetensors")
WEIGHTS = {name: tensor for name, tensor in STORED.items() if name.startswith((PREFIX, PROJECTOR))}
OUTPUT_WIDTH = 40


def stored(kind):
    return {name.removeprefix(kind): tensor for name, tensor in STORED.items() if name.startswith(kind)}


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_output_and_gradients_equal_stored_ones(mode):
    model = from_tensors(HF, WEIGHTS, output_width=OUTPUT_WIDTH, batch_norm=mode)
    inputs = stored(f"input.{mode}.")
    output, gradients, after = value_and_gradients(model, inputs)
    valid = inputs["cotangent"].any(axis=-1, keepdims=True)
    assert relative_error(output * valid, stored(f"output.{mode}")[""] * valid) < 2e-5
    want = stored(f"gradient.{mode}.")
    got = write_tensors(parakeet_entries(model.config), {**after, **gradients})
    for name, gradient in want.items():
        assert relative_error(got[name], gradient) < 1e-4, name
    if mode == "train":
        for name, statistic in stored("after.").items():
            assert relative_error(got[name], statistic) < 2e-5, name
        assert not np.array_equal(got[name], WEIGHTS[name])
    else:
        assert all(np.array_equal(got[name], WEIGHTS[name]) for name in stored("after."))


def test_every_array_is_some_tensor_and_a_round_trip_changes_no_byte():
    config = parakeet_config(HF, output_width=OUTPUT_WIDTH)
    entries = parakeet_entries(config)
    shapes = arrays_by_path(nnx.eval_shape(lambda: ParakeetEncoder(config, rngs=nnx.Rngs(0))))
    arrays = read_arrays(entries, WEIGHTS, shapes)
    assert {path: array.shape for path, array in arrays.items()} == {path: a.shape for path, a in shapes.items()}
    back = write_tensors(entries, arrays)
    assert back.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape), name
        assert back[name].tobytes() == tensor.tobytes(), name


def test_config_round_trip():
    config = dataclasses.replace(parakeet_config(HF, output_width=OUTPUT_WIDTH), scale_input=True)
    assert parakeet_config(parakeet_hf_config(config), output_width=OUTPUT_WIDTH) == config
    bare = dataclasses.replace(config, projector_width=None, output_width=None)
    assert parakeet_config(parakeet_hf_config(bare)) == bare
    assert parakeet_config({"feat_in": 80, "model_type": "parakeet"}) == ParakeetConfig()


def test_an_encoder_with_other_parts_is_refused():
    with pytest.raises(ModelError, match="convolution_bias = True; only False"):
        parakeet_config({**HF, "convolution_bias": True})


def test_constants_of_the_front_end():
    buffers = parakeet_buffers(ParakeetConfig())
    assert {name.removeprefix(PREFIX): (a.shape, a.dtype.name) for name, a in buffers.items()} == {
        "feature_extractor.featurizer.fb": ((1, 128, 257), "float32"),
        "feature_extractor.featurizer.window": ((400,), "float32"),
    }
