import ml_dtypes
import numpy as np
import pytest

from hetjax.models.huggingface.tensor_files.fp8 import dequantize_fp8, fp8_scale, quantize_fp8
from tests.harness.huggingface.fp8_values import e4m3_values, weights

FLOAT32 = np.dtype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_every_number_goes_to_the_nearest_and_the_error_keeps_its_bound(dtype):
    weight = weights().astype(dtype)
    scale = fp8_scale(weight)
    assert scale == np.abs(weight.astype(np.float32)).max() / np.float32(448)
    found = dequantize_fp8(quantize_fp8(weight, scale), scale, FLOAT32).astype(np.float64)
    exact, values = weight.astype(np.float64), e4m3_values() * np.float64(scale)
    error = np.abs(exact - found)
    nearest = np.abs(exact[..., None] - values).min(axis=-1)
    # Float32 divides before it rounds: of two numbers as near, to a few parts of 2**-24, it may take the other.
    slack = 2.0**-22 * np.abs(exact)
    assert np.all(error <= nearest + slack)
    assert np.all(error <= np.maximum(2.0**-4 * np.abs(exact), 2.0**-10 * scale) + slack)
    # The bound is tight: some errors come near to it.
    assert np.max(error / np.maximum(2.0**-4 * np.abs(exact), 2.0**-10 * scale)) > 0.9


def test_representable_numbers_come_back_exactly():
    values = np.tile(e4m3_values().astype(np.float32), (2, 1)) * np.float32(0.25)
    scale = fp8_scale(values)
    assert scale == 0.25
    np.testing.assert_array_equal(dequantize_fp8(quantize_fp8(values, scale), scale, FLOAT32), values)


def test_bytes_of_a_hand_made_example():
    # 448 = 0 1111 110, 1 = 0 0111 000, -1.5 = 1 0111 100, 2**-9 = 0 0000 001
    weight = np.asarray([[448, 1, -1.5, 2.0**-9]], np.float32)
    assert quantize_fp8(weight, fp8_scale(weight)).view(np.uint8).tolist() == [[0x7E, 0x38, 0xBC, 0x01]]


def test_zeros_stay_zeros():
    weight = np.zeros((3, 4), np.float32)
    assert fp8_scale(weight) == 1
    assert not dequantize_fp8(quantize_fp8(weight, fp8_scale(weight)), fp8_scale(weight), FLOAT32).any()
