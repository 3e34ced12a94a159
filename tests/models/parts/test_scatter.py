import jax
import numpy as np

from hetjax.models.parts.scatter import scatter_tokens

RNG = np.random.default_rng(0)
TEXT, TOKENS = RNG.normal(size=(3, 6, 4)), RNG.normal(size=(3, 3, 4))
POSITIONS = np.array([[5, 0, 2], [6, 1, 9], [3, 4, 1000]])


def test_equals_a_loop_and_drops_padding(float64):
    want = TEXT.copy()
    for b in range(3):
        for n in range(3):
            if POSITIONS[b, n] < 6:
                want[b, POSITIONS[b, n]] = TOKENS[b, n]
    np.testing.assert_array_equal(jax.jit(scatter_tokens)(TEXT, TOKENS, POSITIONS), want)


def test_gradient_goes_to_the_rows_in_the_result_and_to_no_other(float64):
    cotangent = RNG.normal(size=TEXT.shape)
    _, vjp = jax.vjp(lambda text, tokens: scatter_tokens(text, tokens, POSITIONS), TEXT, TOKENS)
    to_text, to_tokens = vjp(cotangent)
    want_text, want_tokens = cotangent.copy(), np.zeros_like(TOKENS)
    for b in range(3):
        for n in range(3):
            if POSITIONS[b, n] < 6:
                want_text[b, POSITIONS[b, n]] = 0
                want_tokens[b, n] = cotangent[b, POSITIONS[b, n]]
    np.testing.assert_array_equal(to_text, want_text)
    np.testing.assert_array_equal(to_tokens, want_tokens)


def test_result_has_the_dtype_of_the_text():
    assert scatter_tokens(TEXT.astype(np.float16), TOKENS.astype(np.float32), POSITIONS).dtype == np.float16


def test_where_the_text_has_no_gradient_the_backward_keeps_nothing_of_its_size(float64):
    _, vjp = jax.vjp(lambda tokens: scatter_tokens(TEXT, tokens, POSITIONS), TOKENS)
    assert all(np.size(kept) <= POSITIONS.size for kept in jax.tree.leaves(vjp))
