"""Drawn tokens against exact probabilities, and the limits of what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.models import ModelError, Sampling
from hetjax.models.sampling import GREEDY, choose, is_stop, kept_tokens, keys_of_samples
from tests.harness.models.generate import generate
from tests.harness.models.tiny_models import build_decoder

DRAWS = 20000
LOGITS = np.array([0.3, 1.2, -0.4, 1.9, 0.0, -2.0], np.float32)
CASES = {
    "all tokens": Sampling(),
    "hot": Sampling(temperature=2.5),
    "cold": Sampling(temperature=0.4),
    "top_k": Sampling(temperature=1.5, top_k=3),
    "top_p": Sampling(temperature=1.5, top_p=0.7),
    "both": Sampling(temperature=2.0, top_k=4, top_p=0.75),
}


def exact(logits, sampling):
    """Probabilities in float64, token by token."""
    share = np.exp(np.float64(logits) / sampling.temperature)
    best = sorted(range(len(logits)), key=lambda token: (-share[token], token))
    best = best[: sampling.top_k or len(best)]
    total, kept = sum(share[token] for token in best), []
    for token in best:
        if sum(share[other] for other in kept) / total >= sampling.top_p:
            break
        kept.append(token)
    out = np.zeros(len(logits))
    out[kept] = share[kept]
    return out / out.sum()


def excess(drawn, probabilities):
    """Pearson's statistic over its mean; infinite where something came that has no probability."""
    counts, expected = np.bincount(drawn, minlength=len(probabilities)), probabilities * len(drawn)
    if counts[expected == 0].any():
        return np.inf
    possible = expected > 0
    return ((counts - expected)[possible] ** 2 / expected[possible]).sum() / max(possible.sum() - 1, 1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("along", ["samples", "positions"])
def test_draws_have_the_exact_probabilities(name, along):
    """Seeds are fixed, so that a right program gives the same statistic always: about 1, and below 5."""
    sampling, logits = CASES[name], jnp.tile(LOGITS, (DRAWS, 1))
    keys, positions = keys_of_samples(7, DRAWS), jnp.arange(DRAWS)
    if along == "samples":
        positions = jnp.full(DRAWS, 3)
    else:
        keys = jnp.tile(keys[:1], (DRAWS, 1))
    drawn = np.asarray(jax.jit(choose, static_argnums=1)(logits, sampling, keys, positions))
    want = exact(LOGITS, sampling)
    assert 1 < np.count_nonzero(want) <= (sampling.top_k or len(want))
    assert excess(drawn, want) < 5
    uneven = np.where(want > 0, want + 0.04, 0)
    assert excess(drawn, uneven / uneven.sum()) > 5, "the bound tells a distribution that is a little off"


@pytest.mark.parametrize(
    ("shares", "sampling", "kept"),
    [
        ([1, 4, 2, 1], Sampling(top_p=1.0), [0, 1, 2, 3]),
        ([1, 4, 2, 1], Sampling(top_p=0.5), [1]),  # exactly the half
        ([1, 4, 2, 1], Sampling(top_p=0.51), [1, 2]),
        ([1, 4, 2, 1], Sampling(top_p=0.75), [1, 2]),
        ([1, 4, 2, 1], Sampling(top_p=0.76), [0, 1, 2]),  # of equal ones the first
        ([1, 4, 2, 1], Sampling(top_p=0.999), [0, 1, 2, 3]),
        ([1, 1, 1, 1], Sampling(top_p=0.5), [0, 1]),
        ([1, 1, 1, 1], Sampling(top_p=1e-9), [0]),
        ([1, 1, 1, 1], Sampling(top_k=3), [0, 1, 2]),
        ([1, 2, 2, 1], Sampling(top_k=1), [1]),
        ([1, 4, 2, 1], Sampling(top_k=9), [0, 1, 2, 3]),
        ([1, 4, 2, 1], Sampling(top_k=2, top_p=0.66), [1]),  # 4 of the 6 that are left
        ([1, 4, 2, 1], Sampling(top_k=2, top_p=0.67), [1, 2]),
    ],
)
def test_what_is_kept(shares, sampling, kept):
    got = kept_tokens(jnp.log(jnp.array([shares], jnp.float32)), sampling)
    np.testing.assert_array_equal(np.flatnonzero(got[0]), kept)


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(temperature=0, top_p=0.5), Sampling(top_p=1e-9), Sampling(top_k=1), Sampling(temperature=1e-4)],
)
def test_limits_that_are_the_most_likely_token(sampling):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(64, 9)), jnp.float32)
    got = choose(logits, sampling, keys_of_samples(0, 64), jnp.arange(64))
    np.testing.assert_array_equal(got, np.argmax(logits, axis=-1))
    assert got.dtype == jnp.int32


def test_draws_depend_on_seed_sample_and_position_and_on_nothing_else():
    logits = jnp.zeros((8, 1000))
    positions = jnp.arange(8) + 5
    draw = lambda keys, positions, count=8: np.asarray(choose(logits[:count], Sampling(), keys, positions))  # noqa: E731
    first = draw(keys_of_samples(0, 8), positions)
    np.testing.assert_array_equal(draw(keys_of_samples(0, 3), positions[:3], 3), first[:3])
    for other in (
        draw(keys_of_samples(1, 8), positions),
        draw(keys_of_samples(0, 8), positions + 1),
        draw(keys_of_samples(0, 9)[1:], positions),
    ):
        assert (other != first).sum() >= 7
    largest = draw(keys_of_samples(np.uint32(2**32 - 1), 8), positions)
    assert (largest != first).sum() >= 7


def test_float64_logits_are_drawn_from_in_float64(float64):
    """Of two tokens whose logits float32 does not tell apart, the most likely one is the right one."""
    logits = jnp.array([[1.0, 1.0 + 1e-12]])
    assert choose(logits, Sampling(top_k=1), keys_of_samples(0, 1), jnp.zeros(1, int)) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"temperature": -1}, "temperature = -1 must be 0 or more"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_p": 0}, "0 < top_p <= 1 must hold, but top_p = 0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"top_k": -1}, "top_k = -1"),
    ],
)
def test_sampling_without_sense_is_refused(change, told):
    with pytest.raises(ModelError, match=told):
        Sampling(**change)


def test_any_of_several_tokens_stops_a_sample():
    tokens = jnp.array([[3, 5], [7, 3]])
    np.testing.assert_array_equal(is_stop(tokens, 3), [[True, False], [False, True]])
    np.testing.assert_array_equal(is_stop(tokens, (5, 7)), [[False, True], [True, False]])
    assert not is_stop(tokens, ()).any()


def test_generated_answers_follow_the_seed_and_end_at_any_stop_token():
    model, sampling = build_decoder(), Sampling(temperature=2.0, top_p=0.9)
    prompts, lengths = np.array([[1, 2, 3, 4]] * 5), np.array([4, 4, 2, 3, 4])
    run = jax.jit(
        lambda seed, stop: generate(
            model, prompts, lengths, max_new_tokens=8, stop_token=stop, sampling=sampling, seed=seed
        )
    )
    free = np.asarray(run(0, [-1, -1]))
    np.testing.assert_array_equal(run(0, [-1, -1]), free)
    assert (np.asarray(run(1, [-1, -1])) != free).mean() > 0.5
    assert (free[0] != free[1]).any(), "samples of one prompt differ"
    stops = [int(free[0, 2]), int(free[1, 4])]
    got = np.asarray(run(0, stops))
    ended = 0
    for b in range(5):
        ends = np.flatnonzero(np.isin(free[b], stops))
        end = ends[0] if len(ends) else 7
        np.testing.assert_array_equal(got[b, : end + 1], free[b, : end + 1])
        assert (got[b, end:] == got[b, end]).all()
        ended += end < 7
    assert ended >= 2
