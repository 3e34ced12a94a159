import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax.models.mode import inference
from hetjax.models.parts.conformer.batch_norm import BatchNorm
from tests.harness.models.tiny_models import relative_error


def make(by_batch):
    norm = BatchNorm(3, epsilon=1e-5, momentum=0.1, by_batch=by_batch, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = jnp.array([0.5, 1.0, 2.0]), jnp.array([0.1, 0.2, 0.3])
    norm.mean[...], norm.variance[...] = jnp.array([1.0, -1.0, 0.0]), jnp.array([0.5, 2.0, 1.0])
    return norm


X = np.random.default_rng(0).normal(1, 2, size=(2, 2, 4, 3)).astype(np.float32)
VALID = np.arange(4) < np.array([[4, 2], [0, 3]])[..., None]


def test_statistics_and_what_they_move():
    norm = make(by_batch=True)
    before = np.asarray(norm.mean[...]), np.asarray(norm.variance[...])
    got = norm(jnp.asarray(X), jnp.asarray(VALID))
    rows = X[VALID].astype(np.float64)
    want = (X - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) * [0.5, 1, 2] + [0.1, 0.2, 0.3]
    assert relative_error(got, want) < 1e-6
    np.testing.assert_allclose(norm.mean[...], 0.9 * before[0] + 0.1 * rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(norm.variance[...], 0.9 * before[1] + 0.1 * rows.var(0, ddof=1), rtol=1e-6)
    assert norm.batches[...] == 1


def test_running_statistics_are_taken_and_stay():
    want = (X - [1, -1, 0]) / np.sqrt(np.array([0.5, 2, 1]) + 1e-5) * [0.5, 1, 2] + [0.1, 0.2, 0.3]
    for by_batch in (False, True):
        norm = make(by_batch)
        if by_batch:
            with inference():
                got = norm(jnp.asarray(X), jnp.asarray(VALID))
        else:
            got = norm(jnp.asarray(X), jnp.asarray(VALID))
        assert relative_error(got, want) < 1e-6
        assert norm.batches[...] == 0 and norm.mean[0] == 1


def test_one_token_has_no_variance_to_learn_from():
    norm = make(by_batch=True)
    norm(jnp.asarray(X), jnp.asarray(np.arange(16).reshape(2, 2, 4) == 5))
    assert norm.batches[...] == 0 and norm.variance[1] == 2
