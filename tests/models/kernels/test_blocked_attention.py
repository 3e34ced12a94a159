"""Attention by blocks against all scores at once, and what its blocks cost."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.models.kernels import blocked_attention
from hetjax.models.kernels.attention import attend
from hetjax.models.kernels.attention_mask import Visible, block_overlaps, bounds, causal, seen
from hetjax.models.kernels.flash_attention import BLOCKED, flash_attention
from tests.harness.models.attention_cases import make, with_gradients
from tests.harness.parity.cases import covering_sample

GRID = list(
    itertools.product(
        ((8, 8), (16, 16), (21, 21), (13, 30)), (1, 2, 4), ("all", "causal", "limits"), ("", "sorted", "mixed")
    )
)
QUICK = covering_sample(tuple(GRID))


@pytest.fixture
def short_blocks(monkeypatch):
    monkeypatch.setattr(blocked_attention, "LONGEST_BLOCK", 8)


def check(case, dtype, tolerance):
    (queries, keys), groups, limits, packing = case
    arrays, visible = make(queries, keys, groups=groups, limits=limits, packing=packing, dtype=dtype)
    got = with_gradients(lambda *qkv: flash_attention(BLOCKED, *qkv, visible), arrays)
    wide = [x.astype(jnp.float64) for x in arrays]
    want = with_gradients(lambda *qkv: attend(*qkv, visible.last, visible.query_segments), wide)
    assert [x.dtype for x in got] == [dtype] * 4
    for a, b in zip(got, want, strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_values_and_gradients_equal_attention_at_once(float64, short_blocks, case):
    check(case, jnp.float64, 1e-12)


def test_float32_equals_attention_at_once(float64, short_blocks):
    check(QUICK[-1], jnp.float32, 1e-5)


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("case", GRID[:: len(GRID) // 24], ids=str)
def test_more_cases_equal_attention_at_once(float64, short_blocks, case):
    check(case, jnp.float64, 1e-12)
    check(case, jnp.float32, 1e-5)


def test_no_array_has_all_scores_forward_or_backward():
    (query, key, value, weight), visible = make(2048, 1536, groups=2, limits="limits", packing="", dtype=jnp.float32)
    jaxpr = jax.make_jaxpr(lambda *x: with_gradients(lambda *qkv: flash_attention(BLOCKED, *qkv, visible), x))
    text = str(jaxpr(query, key, value, weight))
    assert "512,512]" in text and "2048,1536]" not in text and "1536,2048]" not in text


@pytest.mark.parametrize("what", ["segments", "limits"])
def test_blocks_that_share_nothing_are_not_computed(short_blocks, what):
    """Keys that are no numbers would show in any block that is computed, whatever its mask."""
    (query, key, value, weight), _ = make(32, 32, groups=2, limits="all", packing="", dtype=jnp.float32)
    ids = jnp.repeat(jnp.array([5, 2]), 16)[None].repeat(2, axis=0)
    visible = Visible(None, ids, ids) if what == "segments" else Visible(jnp.full((1, 32), 15))
    poisoned = [x.at[:, 16:].set(jnp.nan) for x in (key, value)]
    output, vjp = jax.vjp(jax.jit(lambda *qkv: flash_attention(BLOCKED, *qkv, visible)), query, *poisoned)
    own = slice(0, 16 if what == "segments" else 32)
    assert np.isfinite(output[:, own]).all()
    gradients = vjp(weight.at[:, own.stop :].set(0))
    assert np.isfinite(gradients[0][:, own]).all() and np.isfinite(gradients[1][:, :16]).all()


def test_a_query_without_keys_gets_zeros_and_no_gradient(short_blocks):
    (query, key, value, weight), _ = make(16, 16, groups=2, limits="all", packing="", dtype=jnp.float32)
    visible = Visible(jnp.where(jnp.arange(16) == 3, -1, 15)[None])
    got = with_gradients(lambda *qkv: flash_attention(BLOCKED, *qkv, visible), (query, key, value, weight))
    assert all(np.isfinite(x).all() for x in got)
    assert not got[0][:, 3].any() and not got[1][:, 3].any()


@pytest.mark.parametrize("limits", ["all", "causal"])
@pytest.mark.parametrize("packing", ["", "sorted", "mixed"])
def test_bounds_hold_all_blocks_with_anything_and_in_order_no_other(limits, packing):
    _, visible = make(29, 29, groups=1, limits=limits, packing=packing, dtype=jnp.float32)
    mask = seen(*visible, jnp.arange(29))
    mask = np.broadcast_to(True if mask is None else mask, (2, 29, 29))
    padded = np.pad(mask, ((0, 0), (0, 3), (0, 1))).reshape(2, 8, 4, 5, 6)
    wanted = padded.any(axis=(2, 4))
    overlaps = np.broadcast_to(block_overlaps(visible, 29, 29, 4, 6), wanted.shape)
    assert (overlaps >= wanted).all()
    if packing != "mixed":
        np.testing.assert_array_equal(overlaps, wanted)
    first, stop = bounds(jnp.asarray(wanted))
    inside = (np.arange(5) >= first[..., None]) & (np.arange(5) < stop[..., None])
    assert (inside >= wanted).all()
    if packing != "mixed":
        np.testing.assert_array_equal(inside, wanted)
    assert bounds(jnp.zeros((1, 2, 3), bool))[1].tolist() == [[0, 0]]


def test_causal_limits_are_the_own_positions():
    assert causal(3).tolist() == [[0, 1, 2]]
