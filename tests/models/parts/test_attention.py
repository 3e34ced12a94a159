import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from hetjax.models.kernels.attention import attend
from hetjax.models.parts.attention import Attention, Cache


def attend_by_loops(query, key, value, seen):
    """Attention one head and one query at a time; `seen(b, s)` is the number of leading keys in sight."""
    batch, queries, heads, width = query.shape
    share = heads // key.shape[2]
    out = np.zeros_like(query)
    for b in range(batch):
        for s in range(queries):
            for h in range(heads):
                n, g = seen(b, s), h // share
                scores = key[b, :n, g] @ query[b, s, h] / np.sqrt(width)
                weights = np.exp(scores - scores.max())
                out[b, s, h] = weights @ value[b, :n, g] / weights.sum()
    return out


@pytest.fixture
def heads():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 5, 4, 6)), rng.normal(size=(2, 5, 2, 6)), rng.normal(size=(2, 5, 2, 6))


@pytest.mark.parametrize("causal", [True, False])
def test_grouped_attention_equals_loops(float64, heads, causal):
    positions = jnp.arange(5)[None] if causal else None
    got = jax.jit(attend)(*heads, positions)
    want = attend_by_loops(*heads, seen=lambda b, s: s + 1 if causal else 5)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_each_sample_attends_up_to_its_own_positions(float64, heads):
    query, key, value = heads
    positions = np.array([[3, 0], [1, 4]])
    got = jax.jit(attend)(query[:, :2], key, value, positions)
    want = attend_by_loops(query[:, :2], key, value, seen=lambda b, s: positions[b, s] + 1)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_gradients_equal_finite_differences(float64, heads):
    check_grads(jax.jit(lambda q, k, v: attend(q, k, v, jnp.arange(5)[None])), heads, order=1, modes=["rev"])


def test_bfloat16_scores_are_float32(heads):
    half = [jnp.asarray(x, jnp.bfloat16) for x in heads]
    got = attend(*half, jnp.arange(5)[None])
    want = attend_by_loops(*[np.asarray(x, np.float64) for x in half], seen=lambda b, s: s + 1)
    assert got.dtype == jnp.bfloat16
    # Two roundings to 8 bits remain: of the softmax weights and of the result.
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=2**-7 * np.abs(want).max())


def test_cache_holds_each_key_at_its_position_and_drops_those_past_its_end():
    attention = Attention(8, 2, 1, 4, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 3, 8))
    cache = Cache(jnp.zeros((2, 6, 1, 4)), jnp.zeros((2, 6, 1, 4)))
    _, cache = nnx.jit(attention)(x, positions=jnp.array([[4, 0, 2], [5, 6, 1]]), cache=cache)
    keys = np.einsum("bsd,dgk->bsgk", x, attention.key.kernel[...])
    want = np.zeros((2, 6, 1, 4), np.float32)
    want[0, [4, 0, 2]] = keys[0]
    want[1, [5, 1]] = keys[1, [0, 2]]
    np.testing.assert_allclose(cache.key, want, rtol=1e-5, atol=1e-6)


def test_no_bias_on_queries_keys_and_values():
    paths = [
        path for path, _ in nnx.to_flat_state(nnx.state(Attention(8, 2, 1, 4, output_bias=True, rngs=nnx.Rngs(0))))
    ]
    assert [path for path in paths if path[-1] == "bias"] == [("output", "bias")]


def test_windows_equal_segments_without_the_scores_between_them(float64):
    attention = Attention(8, 2, 2, 4, qkv_bias=True, rngs=nnx.Rngs(0))
    definition, weights = nnx.split(attention)
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), weights)
    x = np.random.default_rng(0).normal(size=(2, 11, 8))
    segments = np.array([[0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3], [0, 1, 1, 1, 1, 2, 3, 3, 4, 4, 5]])

    def run(x, windows):
        return nnx.merge(definition, weights)(x, segments=jnp.asarray(segments), windows=windows)[0]

    windows = ((1, 5), (2, 3))
    np.testing.assert_allclose(run(x, windows), run(x, None), rtol=1e-12, atol=1e-14)
    assert "11,11]" in str(jax.make_jaxpr(lambda x: run(x, None))(x))
    assert "11,11]" not in str(jax.make_jaxpr(lambda x: run(x, windows))(x))
