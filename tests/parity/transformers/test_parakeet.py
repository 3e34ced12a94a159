"""The audio encoder beside that of transformers: outputs, gradients of all weights, running statistics."""

import numpy as np
import pytest

from hetjax.models.huggingface.parakeet import parakeet_entries
from tests.harness.huggingface.whole_models import write_tensors
from tests.harness.models.tiny_parakeet import from_tensors, value_and_gradients
from tests.harness.parity.oracle import relative_error

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.live

SCALED = {"scale_input": True, "num_attention_heads": 2, "conv_kernel_size": 5}
DEEP = {"num_hidden_layers": 3, "num_mel_bins": 24, "hidden_size": 48, "subsampling_conv_channels": 8}
CASES = {
    "odd lengths": ({}, (101, 37, 64)),
    "half a minute": ({}, (3000,)),
    "shorter than a token": (SCALED, (9, 1, 8, 17)),
    "other sizes": (DEEP, (80, 79, 78)),
}


def compare(sizes, frames, mode, dtype, limits):
    from tests.golden import make_parakeet as theirs

    hf = {**theirs.SIZES, **sizes}
    model = theirs.tiny_model(1, dtype=getattr(torch, dtype), **sizes)
    tensors = theirs.tensors_of(model)
    width = theirs.PROJECTION["output_size"]
    inputs = theirs.inputs_of(frames, hf["num_mel_bins"], width, dtype)
    want, want_gradients = theirs.run(model, inputs, mode)
    hf = {**hf, "projection_hidden_size": theirs.PROJECTION["hidden_size"]}
    ours = from_tensors(hf, tensors, output_width=width, batch_norm=mode)
    got, gradients, after = value_and_gradients(ours, inputs)
    valid = inputs["cotangent"].any(axis=-1, keepdims=True)
    assert relative_error(got * valid, want * valid) < limits[0]
    written = write_tensors(parakeet_entries(ours.config), {**after, **gradients})
    for name, gradient in want_gradients.items():
        assert relative_error(written[name], gradient) < limits[1], name
    for name, tensor in theirs.tensors_of(model).items():
        if "running" in name or "tracked" in name:
            assert relative_error(written[name], tensor) < limits[0], name
            assert np.array_equal(tensor, tensors[name]) == (mode == "eval"), name


@pytest.mark.parametrize(("sizes", "frames"), CASES.values(), ids=CASES)
def test_encoder_equals_transformers(sizes, frames):
    compare(sizes, frames, "eval", "float32", (2e-5, 1e-4))


@pytest.mark.parametrize("sizes", [{}, DEEP], ids=["tiny", "deep"])
def test_training_by_statistics_of_the_batch_equals_transformers(sizes):
    compare(sizes, (75, 75, 75), "train", "float32", (2e-5, 1e-4))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_encoder_equals_transformers_in_float64(float64, mode):
    """Softmax is that of `scaled_dot_product_attention`, which keeps the dtype; see also `tiny_model`."""
    compare({}, (101, 101) if mode == "train" else (101, 60), mode, "float64", (1e-9, 1e-9))
