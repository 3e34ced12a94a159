"""The numbers that FP8 can hold, and weights to quantize."""

import numpy as np


def e4m3_values() -> np.ndarray:
    """Every finite E4M3 number, by its definition: sign, 4 bits of exponent (bias 7), 3 of mantissa."""
    values = set()
    for exponent in range(16):
        for mantissa in range(8):
            if (exponent, mantissa) != (15, 7):
                value = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
                values |= {value, -value}
    return np.asarray(sorted(values))


def weights(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(67, 48)) * 10.0 ** random.uniform(-6, 1, size=(67, 1))).astype(np.float32)
