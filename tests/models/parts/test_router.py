import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hetjax.models.parallel.zigzag_order import SequenceOrder
from hetjax.models.parts.router import Router, within_capacity

BATCH, SEQ, WIDTH, EXPERTS, K = 3, 5, 6, 7, 2
X = np.random.default_rng(1).normal(size=(BATCH, SEQ, WIDTH)).astype(np.float32)


def build(**options) -> Router:
    return Router(WIDTH, EXPERTS, K, rngs=nnx.Rngs(0), **options)


@functools.partial(nnx.jit, static_argnames="training")
def run(router: Router, x, training: bool = True):
    """The router's choice, in one program."""
    return router(x, training=training)


def test_chosen_experts_and_weights_equal_numpy_token_by_token():
    router = build(scores="sigmoid", factor=2.5, bias_rate=0.1)
    bias = np.linspace(0.3, -0.3, EXPERTS, dtype=np.float32)
    router.bias[...] = jnp.asarray(bias)
    routing = run(router, X)
    without = run(build(scores="sigmoid", factor=2.5), X)
    for b, s in np.ndindex(BATCH, SEQ):
        scores = 1 / (1 + np.exp(-(X[b, s] @ np.asarray(router.kernel[...]))))
        best = sorted(range(EXPERTS), key=lambda e: -(scores[e] + bias[e]))[:K]
        np.testing.assert_array_equal(routing.experts[b, s], best)
        np.testing.assert_allclose(routing.weights[b, s], 2.5 * scores[best] / scores[best].sum(), rtol=1e-5)
    assert (routing.experts != without.experts).any(), "the bias takes part in the choice"


def test_bias_moves_against_the_counts_of_all_calls_since_the_last_step():
    router = build(bias_rate=0.25)
    counts = np.zeros(EXPERTS, int)
    for part in (X[:1], X[1:]):
        counts += np.bincount(np.asarray(run(router, part).experts).ravel(), minlength=EXPERTS)
        np.testing.assert_array_equal(router.bias[...], np.zeros(EXPERTS))
    np.testing.assert_array_equal(router.counts[...], counts)
    router.end_of_step()
    np.testing.assert_array_equal(router.bias[...], 0.25 * np.sign(counts.mean() - counts))
    assert len(set(counts)) > 2
    assert not router.counts[...].any()
    before = router.bias[...]
    run(router, X, training=False)
    router.end_of_step()
    np.testing.assert_array_equal(router.bias[...], before)


def test_bias_has_no_gradient_and_a_rate_of_zero_keeps_it():
    router = build(bias_rate=0.0, balance_loss=0.1)
    router.bias[...] = jnp.linspace(0, 1, EXPERTS)
    run(router, X)
    router.end_of_step()
    np.testing.assert_array_equal(router.bias[...], jnp.linspace(0, 1, EXPERTS))

    def loss(bias):
        router = build(bias_rate=0.0, balance_loss=0.1)
        router.bias[...] = bias
        routing = router(X, training=False)
        return routing.weights[..., 0].sum() + routing.balance.sum()

    assert not jax.grad(loss)(jnp.linspace(0, 1, EXPERTS)).any()


def test_balance_loss_is_least_where_all_experts_have_the_same_share():
    """It is the coefficient for an even load with even scores, and E/k times that where k experts get all."""
    router = Router(WIDTH, 4, 1, balance_loss=0.5, rngs=nnx.Rngs(0))
    router.kernel[...] = 100 * jnp.eye(WIDTH)[:, :4]
    even, one = jnp.eye(WIDTH)[:4][None], jnp.tile(jnp.eye(WIDTH)[:1], (4, 1))[None]
    np.testing.assert_allclose(run(router, jnp.concatenate([even, one])).balance, [0.5, 2.0], rtol=1e-6)


@pytest.mark.parametrize("shards", [1, 2])
def test_capacity_keeps_the_first_rows_of_each_sequence_in_any_order(shards):
    order = SequenceOrder(length=8, shards=shards)
    experts = np.random.default_rng(2).permuted(np.tile(np.arange(3), (2, 8, 1)), axis=-1)[..., :2].astype(np.int32)
    want = experts.copy()
    for b in range(2):
        taken = np.zeros(3, int)
        for s, k in np.ndindex(8, 2):
            expert = experts[b, s, k]
            taken[expert] += 1
            want[b, s, k] = expert if taken[expert] <= 4 else 3
    got = jax.jit(lambda experts: within_capacity(experts, 3, 4, order))(jnp.asarray(experts[:, order.positions]))
    np.testing.assert_array_equal(got, want[:, order.positions])
    assert (want == 3).sum() >= 4
