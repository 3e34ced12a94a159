import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from hetjax.models.parts.loss import cross_entropy

RNG = np.random.default_rng(0)
LOGITS, LABELS, WEIGHTS = RNG.normal(size=(2, 5, 11)) * 4, RNG.integers(0, 11, (2, 5)), RNG.uniform(size=(2, 5))


def loss_by_loops(logits, labels, weights):
    total = 0.0
    for b, s in np.ndindex(labels.shape):
        if weights[b, s]:
            probabilities = np.exp(logits[b, s]) / np.exp(logits[b, s]).sum()
            total -= weights[b, s] * np.log(probabilities[labels[b, s]])
    return total


def test_equals_a_loop_over_tokens(float64):
    np.testing.assert_allclose(
        cross_entropy(LOGITS, LABELS, WEIGHTS), loss_by_loops(LOGITS, LABELS, WEIGHTS), rtol=1e-12
    )


def test_gradient_equals_finite_differences(float64):
    check_grads(lambda logits: cross_entropy(logits, LABELS, WEIGHTS), (LOGITS,), order=1, modes=["rev"])


def test_ignored_label_outside_the_vocabulary_adds_nothing(float64):
    labels, weights = LABELS.copy(), WEIGHTS.copy()
    labels[0, 2], weights[0, 2] = -100, 0
    value, gradient = jax.value_and_grad(cross_entropy)(LOGITS, labels, weights)
    np.testing.assert_allclose(value, loss_by_loops(LOGITS, labels, weights), rtol=1e-12)
    assert np.isfinite(gradient).all() and not gradient[0, 2].any()


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    value = cross_entropy(logits, LABELS, WEIGHTS.astype(np.float32))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, loss_by_loops(np.asarray(logits, np.float64), LABELS, WEIGHTS), rtol=1e-5)


def test_huge_logits_do_not_overflow():
    assert np.isfinite(cross_entropy(jnp.full((1, 1, 3), 1e5), jnp.zeros((1, 1), int), jnp.ones((1, 1))))
