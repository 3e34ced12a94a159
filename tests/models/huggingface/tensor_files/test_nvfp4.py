import ml_dtypes
import numpy as np
import pytest

from hetjax.models import ModelError
from hetjax.models.huggingface.tensor_files.nvfp4 import dequantize_nvfp4, nvfp4_scale, quantize_nvfp4
from tests.harness.huggingface.fp8_values import e4m3_values, weights

FLOAT32 = np.dtype(np.float32)
MAGNITUDES = np.asarray([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def turned(weight):
    scale = nvfp4_scale(weight)
    packed, scales = quantize_nvfp4(weight, scale)
    return dequantize_nvfp4(packed, scales, scale, FLOAT32).astype(np.float64), scales, scale


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_every_number_goes_to_the_nearest_and_the_error_keeps_its_bound(dtype):
    weight = weights(1).astype(dtype)
    found, scales, scale = turned(weight)
    exact = weight.astype(np.float64)
    unit = np.repeat(scales.astype(np.float64) * np.float64(scale), 16, axis=1)
    error, x = np.abs(exact - found), np.abs(exact) / unit
    nearest = np.abs(np.abs(exact)[..., None] - unit[..., None] * MAGNITUDES).min(axis=-1)
    slack = 2.0**-21 * np.abs(exact)
    assert np.all(error <= nearest + slack)
    half_step = np.where(x <= 2, 0.25, np.where(x <= 4, 0.5, 1.0))
    normal = np.repeat(scales.astype(np.float64) >= 2.0**-6, 16, axis=1)
    assert normal.any() and not normal.all()
    assert np.all((error <= half_step * unit + slack)[normal])
    assert np.all((x <= 6.4 * (1 + 2.0**-20))[normal])
    assert np.all(error <= np.maximum(half_step, x - 6) * unit + slack)
    assert np.max((error / (half_step * unit))[normal]) > 0.9


def test_block_scales_are_the_nearest_e4m3_numbers():
    weight = weights(2)
    _, scales, scale = turned(weight)
    assert scale == np.abs(weight).max() / np.float32(6 * 448)
    wanted = np.abs(weight.astype(np.float64)).reshape(67, 3, 16).max(axis=2) / 6 / np.float64(scale)
    wanted = np.maximum(wanted, 2.0**-9)
    distance = np.abs(wanted[..., None] - e4m3_values()).min(axis=-1)
    np.testing.assert_allclose(np.abs(scales.astype(np.float64) - wanted), distance, atol=1e-5 * wanted.max())


def test_representable_numbers_come_back_exactly():
    row = np.concatenate([MAGNITUDES, -MAGNITUDES]).astype(np.float32)
    weight = np.stack([row * 448, np.roll(row, 5) * 1.5]) * np.float32(0.125)
    found, scales, scale = turned(weight)
    assert scale == 0.125
    assert scales.astype(np.float32).tolist() == [[448], [1.5]]
    np.testing.assert_array_equal(found, weight)


def test_bytes_of_a_hand_made_example():
    # One block whose scale is 1 (0x38): codes 0..7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6, and 8 more is the sign.
    # The other has 448 (0x7E). The first of two neighbours is the low nibble.
    first = [0.5, 6, -1, 3, 0, 4, 1.5, -2, 0, 0, 0, 0, 0, 0, 0, 0.5]
    weight = np.asarray([first + [6 * 448.0] + [0] * 15], np.float32)
    packed, scales = quantize_nvfp4(weight, nvfp4_scale(weight))
    assert packed.tolist() == [[0x71, 0x5A, 0x60, 0xC3, 0, 0, 0, 0x10, 0x07, 0, 0, 0, 0, 0, 0, 0]]
    assert scales.view(np.uint8).tolist() == [[0x38, 0x7E]]


def test_a_block_far_below_the_others_is_not_lost():
    weight = np.zeros((1, 48), np.float32)
    weight[0, 0], weight[0, 16:32] = 1.0, 1.5e-6  # the third block is of zeros
    found, scales, scale = turned(weight)
    assert scales.astype(np.float32).tolist() == [[448, 2.0**-9, 1]]
    assert np.all(np.abs(found[0, 16:32] - 1.5e-6) <= 0.25 * 2.0**-9 * scale)


def test_a_width_without_blocks_is_refused():
    with pytest.raises(ModelError, match="a weight of 24 inputs has no NVFP4 form: inputs % 16 = 8 must be 0"):
        quantize_nvfp4(np.ones((2, 24), np.float32), np.float32(1))
