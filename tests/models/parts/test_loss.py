import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from hetjax.models.kernels import token_losses
from hetjax.models.parts.loss import cross_entropy

# B batch · S sequence · D width · V vocabulary
RNG = np.random.default_rng(0)
X, TABLE = RNG.normal(size=(2, 5, 4)) * 2, RNG.normal(size=(11, 4))
LABELS, WEIGHTS = RNG.integers(0, 11, (2, 5)), RNG.uniform(size=(2, 5))

# Logits of a chunk: all 10 tokens at once, 4 of them (the last chunk is filled up), one by one.
CHUNKS = {"one": 2**27, "three": 4 * 11, "each": 1}


@pytest.fixture(params=CHUNKS.values(), ids=CHUNKS)
def chunks(request, monkeypatch):
    monkeypatch.setattr(token_losses, "MOST_LOGITS", request.param)


def loss(x, table, labels=LABELS, weights=WEIGHTS):
    return cross_entropy(x, table, labels, weights, vocab_dim=0)


def loss_by_loops(x, table, labels, weights):
    total = 0.0
    for b, s in np.ndindex(labels.shape):
        if weights[b, s]:
            exponentials = np.exp(table @ x[b, s])
            total -= weights[b, s] * np.log(exponentials[labels[b, s]] / exponentials.sum())
    return total


def test_equals_a_loop_over_tokens(float64, chunks):
    np.testing.assert_allclose(loss(X, TABLE), loss_by_loops(X, TABLE, LABELS, WEIGHTS), rtol=1e-12)


def test_gradients_equal_finite_differences(float64, chunks):
    check_grads(lambda *args: loss(*args[:2], weights=args[2]), (X, TABLE, WEIGHTS), order=1, modes=["rev"])


def test_a_head_gives_what_its_transpose_gives_as_a_table(float64, chunks):
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(X, TABLE)
    head = jax.value_and_grad(lambda x, kernel: cross_entropy(x, kernel, LABELS, WEIGHTS, vocab_dim=1), argnums=(0, 1))
    of_head, (of_x, of_kernel) = head(X, TABLE.T)
    for got, want in ((of_head, value), (of_x, gradients[0]), (of_kernel.T, gradients[1])):
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_ignored_label_outside_the_vocabulary_adds_nothing(float64, chunks):
    labels, weights = LABELS.copy(), WEIGHTS.copy()
    labels[0, 2], weights[0, 2] = -100, 0
    value, gradient = jax.value_and_grad(loss)(X, TABLE, labels, weights)
    np.testing.assert_allclose(value, loss_by_loops(X, TABLE, labels, weights), rtol=1e-12)
    assert np.isfinite(gradient).all() and not gradient[0, 2].any()


def test_bfloat16_logits_are_summed_in_float32(chunks):
    """Of chunks too, whose gradients of the table are added up in float32."""
    x, table = jnp.asarray(X, jnp.bfloat16), jnp.asarray(TABLE, jnp.bfloat16)
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(x, table, weights=WEIGHTS.astype(np.float32))
    assert value.dtype == jnp.float32 and {each.dtype for each in gradients} == {jnp.dtype(jnp.bfloat16)}
    logits = np.asarray(jnp.einsum("bsd,vd->bsv", x, table), np.float64)
    np.testing.assert_allclose(value, loss_by_loops(logits, np.eye(11), LABELS, WEIGHTS), rtol=1e-5)
    wide = [np.asarray(each, np.float32) for each in (x, table)]
    for got, want in zip(gradients, jax.grad(loss, argnums=(0, 1))(*wide), strict=True):
        np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=0.02 * np.abs(want).max())


def test_huge_logits_do_not_overflow(chunks):
    x, table = jnp.full((1, 1, 1), 1e5), jnp.ones((3, 1))
    assert np.isfinite(loss(x, table, jnp.zeros((1, 1), int), jnp.ones((1, 1))))


@pytest.mark.parametrize("tokens", [4096, 4097])
def test_no_array_is_as_large_as_the_logits_of_all_tokens(tokens):
    """At sizes at which the tokens are several chunks."""
    vocabulary = 2**16
    shapes = ((1, tokens, 8), (vocabulary, 8))
    x, table = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
    labels, weights = np.zeros((1, tokens), np.int32), np.ones((1, tokens), np.float32)
    grad = jax.grad(lambda x, table: loss(x, table, labels, weights), argnums=(0, 1))
    sizes = [aval.size for aval in arrays_of(jax.make_jaxpr(grad)(x, table).jaxpr)]
    assert vocabulary * tokens // 4 < max(sizes) <= token_losses.MOST_LOGITS


def arrays_of(jaxpr):
    """All arrays that a function and those inside of it make."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda each: hasattr(each, "eqns")):
            if hasattr(inner, "eqns"):
                yield from arrays_of(getattr(inner, "jaxpr", inner))
