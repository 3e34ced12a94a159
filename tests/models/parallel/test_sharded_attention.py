"""Attention by blocks on each device for its own samples and heads, as layers ask for it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from hetjax.models.kernels import blocked_attention
from hetjax.models.kernels.attention import attend
from hetjax.models.parallel.layout_in_force import NO_DEVICE, Splits, layout_in_force
from hetjax.models.parallel.sharded_attention import sharded_attention
from hetjax.models.parallel.zigzag_order import causal_order
from tests.harness.models.attention_cases import make, with_gradients

LENGTH = 20


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(blocked_attention, "LONGEST_BLOCK", 8)


@pytest.fixture
def splits():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    axes = {"batch": ("data",), "heads": ("tensor",), "kv_heads": ("tensor",)}
    return Splits(mesh=mesh, axes_of=lambda dim: axes.get(dim, ()))


def has_blocks(function, *arguments) -> bool:
    return "while" in str(jax.make_jaxpr(function)(*arguments))


def check(function, arrays, visible):
    got = with_gradients(function, arrays)
    want = with_gradients(lambda *qkv: attend(*qkv, visible.last, visible.query_segments), arrays)
    for a, b in zip(got, want, strict=True):
        assert np.abs(a - b).max() <= 1e-12 * np.abs(b).max()


@pytest.mark.parametrize("sharded", [False, True])
def test_packed_sequences_equal_attention_at_once(float64, splits, sharded):
    arrays, visible = make(LENGTH, LENGTH, groups=2, limits="causal", packing="sorted", dtype=jnp.float64)

    def run(query, key, value):
        with layout_in_force(lambda x, dims: x, splits if sharded else None):
            order = causal_order(LENGTH)
            return sharded_attention(query, key, value, order=order, segments=visible.query_segments)

    assert has_blocks(run, *arrays[:3])
    check(run, arrays, visible)


def test_a_prompt_against_a_cache_equals_attention_at_once(float64, splits):
    arrays, visible = make(LENGTH, 30, groups=2, limits="limits", packing="", dtype=jnp.float64)

    def run(query, key, value):
        with layout_in_force(lambda x, dims: x, splits):
            return sharded_attention(query, key, value, positions=visible.last)

    assert has_blocks(run, *arrays[:3])
    check(run, arrays, visible)


def test_shards_of_the_batch_run_side_by_side(float64, splits):
    """As `hetjax.programs.data_shards` runs a model: under a vmap over `data`, whose layout splits `tensor` alone."""
    arrays, visible = make(LENGTH, LENGTH, groups=2, limits="all", packing="mixed", dtype=jnp.float64)
    inner = dataclasses.replace(splits, axes_of=lambda dim: () if dim == "batch" else splits.axes_of(dim))

    def run(query, key, value, segments):
        with layout_in_force(lambda x, dims: x, inner):
            return sharded_attention(query, key, value, segments=segments)

    def by_shard(query, key, value):
        ones = [x[:, None] for x in (query, key, value, visible.query_segments)]
        return jax.vmap(run, spmd_axis_name="data")(*ones)[:, 0]

    check(by_shard, arrays, visible)


def test_short_sequences_one_query_and_products_that_are_counted_take_all_scores_at_once():
    def asks_for_blocks(queries, keys, device=None):
        arrays, _ = make(queries, keys, groups=2, limits="all", packing="", dtype=jnp.float32)
        with layout_in_force(lambda x, dims: x, device=device):
            return has_blocks(lambda *qkv: sharded_attention(*qkv), *arrays[:3])

    assert asks_for_blocks(16, 16)
    assert not asks_for_blocks(8, 8) and not asks_for_blocks(1, 1000) and not asks_for_blocks(16, 16, NO_DEVICE)
