"""Attention over a split sequence against plain attention in float64: values, gradients, and what moves."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.compilation.hlo import collectives
from hetjax.models.errors import LayoutError
from hetjax.models.parallel.layout_in_force import Splits
from hetjax.models.parallel.ring_attention import ring_attention
from hetjax.models.parallel.zigzag_order import SequenceOrder
from tests.harness.parity.cases import covering_sample

AXES = {"batch": ("data",), "seq": ("context",), "heads": ("tensor",), "kv_heads": ("tensor",)}


def splits(context: int, data: int = 1, tensor: int = 1, form: str = "ring") -> Splits:
    degrees = {"data": data, "context": context, "tensor": tensor}
    mesh = Mesh(np.array(jax.devices()[: data * context * tensor]).reshape(data, context, tensor), tuple(degrees))
    axes_of = lambda dim: tuple(axis for axis in AXES.get(dim, ()) if degrees[axis] > 1)  # noqa: E731
    return Splits(mesh=mesh, axes_of=axes_of, context_attention=form)


def inputs(context: int, *, groups: int, dtype, batch: int = 2, heads: int = 4, chunk: int = 2, width: int = 6):
    """Queries, keys, values and a weight for each output; segments of unlike lengths, some over several chunks."""
    rng, length = np.random.default_rng(context), 2 * context * chunk
    query, weight = rng.normal(size=(2, batch, length, heads, width))
    key, value = rng.normal(size=(2, batch, length, groups, width))
    segments = np.sort(rng.integers(0, 3, (batch, length)), axis=1).astype(np.int32)
    return *(jnp.asarray(x, dtype) for x in (query, key, value, weight)), jnp.asarray(segments)


def plain(query, key, value, segments, *, causal):
    """softmax(q k / sqrt K) v over whole sequences, keys repeated for the heads that share them."""
    key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    scores = jnp.einsum("bshk,bthk->bhst", query, key) / np.sqrt(query.shape[-1])
    rows = np.arange(query.shape[1])
    seen = jnp.asarray(rows[:, None] >= rows if causal else np.ones((len(rows), len(rows)), bool))[None]
    if segments is not None:
        seen = seen & (segments[:, :, None] == segments[:, None, :])
    exponentials = jnp.where(seen[:, None], jnp.exp(scores), 0)
    return jnp.einsum("bhst,bthk->bshk", exponentials / exponentials.sum(-1, keepdims=True), value)


def largest_errors(split: Splits, arrays, segments, *, causal):
    """Of the output and of the gradients of query, key and value."""
    *qkv, weight = arrays
    order = SequenceOrder(length=weight.shape[1], shards=split.mesh.shape["context"] if causal else 1)
    back = np.argsort(order.positions)

    def across(*qkv):
        placed = [x[:, order.positions] for x in qkv]
        rows = None if segments is None else segments[:, order.positions]
        return ring_attention(split, *placed, rows, causal=causal)[:, back]

    def with_gradients(function, qkv):
        output, vjp = jax.vjp(function, *qkv)
        return output, *vjp(weight.astype(output.dtype))

    got = jax.jit(lambda *qkv: with_gradients(across, qkv))(*qkv)
    reference = partial(plain, segments=segments, causal=causal)
    want = jax.jit(lambda *qkv: with_gradients(reference, qkv))(*(x.astype(jnp.float64) for x in qkv))
    assert [x.dtype for x in got] == [x.dtype for x in (qkv[0], *qkv)]
    return [
        float(np.abs(np.asarray(g) - np.asarray(w)).max() / np.abs(w).max()) for g, w in zip(got, want, strict=True)
    ]


GRID = list(itertools.product((2, 3, 4), (True, False), (2, 4), (True, False), ("ring", "all_gather")))
QUICK = covering_sample(tuple(GRID))


def check(case, mixed: dict, dtype):
    context, causal, groups, packed, form = case
    *arrays, segments = inputs(context, groups=groups, dtype=dtype)
    errors = largest_errors(splits(context, form=form, **mixed), arrays, segments if packed else None, causal=causal)
    assert max(errors) < (1e-12 if dtype == jnp.float64 else 1e-5), errors


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_values_and_gradients_equal_plain_attention(float64, case):
    check(case, {2: {"data": 2, "tensor": 2}, 3: {"data": 2}, 4: {"tensor": 2}}[case[0]], jnp.float64)


@pytest.mark.parametrize("case", QUICK[:2], ids=str)
def test_float32_equals_plain_attention(float64, case):
    check(case, {"tensor": 2}, jnp.float32)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("mixed", [{}, {"data": 2}, {"tensor": 2}], ids=str)
@pytest.mark.parametrize("case", GRID, ids=str)
def test_all_cases_equal_plain_attention(float64, case, mixed):
    check(case, mixed, jnp.float64)
    check(case, mixed, jnp.float32)


def test_both_forms_give_the_very_same_output():
    *arrays, _ = inputs(4, groups=2, dtype=jnp.float32)
    ring, gathered = (
        jax.jit(lambda q, k, v, form=form: ring_attention(splits(4, form=form), q, k, v, causal=True))(*arrays[:3])
        for form in ("ring", "all_gather")
    )
    np.testing.assert_array_equal(ring, gathered)


def placed(x, split: Splits):
    return jax.device_put(x, NamedSharding(split.mesh, P("data", "context", "tensor")))


def compiled_text(function, split: Splits, arrays) -> str:
    return jax.jit(function).lower(*(placed(x, split) for x in arrays)).compile().as_text()


@pytest.mark.parametrize(("context", "causal"), [(2, True), (4, True), (3, False)])
def test_ring_moves_keys_and_values_and_their_gradients_only(context, causal):
    split = splits(context, tensor=2)
    query, key, value, weight, _ = inputs(context, groups=2, dtype=jnp.float32)

    def forward(*qkv):
        return jax.vjp(lambda *qkv: ring_attention(split, *qkv, causal=causal), *qkv)

    found = collectives(compiled_text(forward, split, (query, key, value)))
    assert len(found) == 2 * (context - 1)
    # One move takes the keys, or the values, of every device to the next one.
    assert {(each.kind, each.bytes_received) for each in found} == {("collective-permute", key.nbytes)}

    _, vjp = jax.jit(forward)(*(placed(x, split) for x in (query, key, value)))
    text = jax.jit(lambda vjp, weight: vjp(weight)).lower(vjp, placed(weight, split)).compile().as_text()
    found = collectives(text)
    assert {(each.kind, each.bytes_received) for each in found} == {("collective-permute", key.nbytes)}
    # Keys and values once more, and their gradients.
    assert len(found) == 4 * (context - 1)


def test_bfloat16_keys_and_values_travel_as_such_and_their_gradients_as_float32():
    """Read before compilation: CPU programs widen bfloat16 in collectives."""
    split = splits(2)
    query, key, value, weight, _ = inputs(2, groups=2, dtype=jnp.bfloat16)

    def backward(q, k, v, weight):
        return jax.vjp(lambda *qkv: ring_attention(split, *qkv, causal=True), q, k, v)[1](weight)

    text = jax.jit(backward).lower(query, key, value, weight).as_text()
    moves = [line.rsplit("x", 1)[1][:4].rstrip(">") for line in text.splitlines() if "collective_permute" in line]
    assert sorted(moves) == ["bf16"] * 4 + ["f32"] * 2


def test_all_gather_moves_no_more_than_the_ring():
    split = splits(4, tensor=2, form="all_gather")
    query, key, value, _, _ = inputs(4, groups=2, dtype=jnp.float32)
    found = collectives(
        compiled_text(lambda q, k, v: ring_attention(split, q, k, v, causal=True), split, (query, key, value))
    )
    assert {each.kind for each in found} == {"all-gather"}
    assert sum(each.bytes_received for each in found) == 3 * (key.nbytes + value.nbytes)


def test_key_heads_that_do_not_divide_are_refused():
    query, key, value, _, _ = inputs(2, groups=1, dtype=jnp.float32)
    with pytest.raises(LayoutError, match=r"kv_heads % tensor = 0, but 1 % 2 = 1"):
        ring_attention(splits(2, tensor=2), query, key, value, causal=True)
