"""The Triton kernels, interpreted on CPU, against all scores at once; compiled for a GPU that is not there."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.models.kernels.attention import attend
from hetjax.models.kernels.attention_mask import Visible
from hetjax.models.kernels.flash_attention import BLOCKED, flash_attention, projection_of
from hetjax.models.kernels.partial_attention import nothing_seen
from hetjax.models.kernels.triton_attention import is_supported, triton_kernel
from tests.harness.models.attention_cases import make, with_gradients

INTERPRETED = triton_kernel(interpret=True)

# Lengths that fill blocks and that do not, more keys than queries; a width that is a power of two and one that is not.
GRID = list(
    itertools.product(
        ((128, 128), (131, 131), (70, 150)), (1, 2, 4), ("all", "causal", "limits"), ("", "sorted", "mixed")
    )
)
# Heads of 72 are parts of 64 and 16, the second half empty; those of 80 are full.
QUICK = [
    ((131, 131), 2, "causal", "sorted", 72),
    ((70, 150), 1, "limits", "", 16),
    ((128, 128), 4, "all", "sorted", 80),
]


def check(case):
    (queries, keys), groups, limits, packing, width = case
    arrays, visible = make(
        queries, keys, groups=groups, limits=limits, packing=packing, dtype=jnp.float32, batch=1, heads=4, width=width
    )
    got = with_gradients(lambda *qkv: flash_attention(INTERPRETED, *qkv, visible), arrays)
    want = with_gradients(lambda *qkv: attend(*qkv, visible.last, visible.query_segments), arrays)
    for a, b in zip(got, want, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_values_and_gradients_equal_attention_at_once(case):
    check(case)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("case", GRID[:: len(GRID) // 9], ids=str)
def test_more_cases_equal_attention_at_once(case):
    check((*case, 20))


def test_16_bits_on_recent_nvidia_devices_alone():
    assert is_supported(jnp.bfloat16, 80, (9, 0)) and is_supported(jnp.float16, 256, (8, 0))
    assert not is_supported(jnp.float32, 64, (9, 0))
    assert not is_supported(jnp.bfloat16, 257, (9, 0))
    assert not is_supported(jnp.bfloat16, 64, (7, 5)) and not is_supported(jnp.bfloat16, 64, ())


@pytest.mark.parametrize("kernel", [BLOCKED, INTERPRETED], ids=["blocked", "triton"])
def test_keys_in_two_parts_give_what_they_give_at_once(kernel):
    """The second part goes on from the first; some queries see nothing of one of them."""
    (query, key, value, weight), _ = make(
        70, 140, groups=2, limits="all", packing="", dtype=jnp.float32, batch=1, heads=2, width=16
    )
    ids = jnp.arange(70)[None] // 24, jnp.arange(140)[None] // 50
    visible, parts = Visible(None, *ids), (slice(0, 70), slice(70, 140))

    def in_parts(query, key, value, weight):
        before = nothing_seen(query)
        tiles = [(query, key[:, part], value[:, part], Visible(None, ids[0], ids[1][:, part])) for part in parts]
        for tile in tiles:
            before = kernel.forward(*tile, jnp.float32, before)
        of_output = before.log_sum, projection_of(weight, before.values), weight
        d_query, of_keys = jnp.zeros_like(query), []
        for tile in tiles:
            zero = jnp.zeros_like(tile[1])
            d_query, *d_held = kernel.backward(*tile, *of_output, jnp.float32, (d_query, zero, zero))
            of_keys.append(d_held)
        d_key, d_value = (jnp.concatenate(x, axis=1) for x in zip(*of_keys, strict=True))
        return before.values, d_query, d_key, d_value

    got = jax.jit(in_parts)(query, key, value, weight)
    want = with_gradients(lambda *qkv: flash_attention(BLOCKED, *qkv, visible), (query, key, value, weight))
    for a, b in zip(got, want, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()
