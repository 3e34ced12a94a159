import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hetjax.models import MoEConfig
from tests.harness.models.generate import generate
from tests.harness.models.tiny_models import DECODER, build_decoder

LENGTHS, NEW = np.array([5, 2, 7]), 6
RNG = np.random.default_rng(4)
PROMPTS = RNG.integers(0, DECODER.vocab_size, (3, 7))
IMAGES = {
    "image_tokens": RNG.normal(size=(3, 2, DECODER.width)).astype(np.float32),
    "image_positions": np.array([[1, 3], [0, 99], [4, 6]]),
}
RUN = nnx.jit(generate, static_argnames=("max_new_tokens",))


def most_likely_next(model):
    """A function from one sequence and its length to its most likely next token, by the training loss alone."""
    definition, weights = nnx.split(model)

    @jax.jit
    def best(weights, tokens, length, images):
        at_last = (jnp.arange(tokens.shape[1]) == length - 1)[None].astype(jnp.float32)

        def loss(label):
            labels = jnp.full(tokens.shape, label)
            model = nnx.merge(definition, weights, copy=True)
            return model(tokens=tokens, labels=labels, loss_weights=at_last, **images)["loss"]

        return jnp.argmin(jax.lax.map(loss, jnp.arange(DECODER.vocab_size)))

    return partial(best, weights)


EXPERTS = dataclasses.replace(DECODER, experts=MoEConfig(count=4, top_k=2, bias_rate=0.1, balance_loss=0.1))


@pytest.mark.parametrize(("config", "images"), [(DECODER, IMAGES), (DECODER, {}), (EXPERTS, IMAGES)])
def test_every_token_equals_a_full_recomputation(config, images):
    model = build_decoder(config)
    got = np.asarray(RUN(model, PROMPTS, LENGTHS, **images, max_new_tokens=NEW, stop_token=-1))
    assert got.shape == (3, NEW)
    best = most_likely_next(model)
    for b, length in enumerate(LENGTHS):
        sequence = np.zeros((1, 7 + NEW), PROMPTS.dtype)
        sequence[0, :length] = PROMPTS[b, :length]
        own = {key: value[b : b + 1] for key, value in images.items()}
        for t in range(NEW):
            sequence[0, length + t] = best(sequence, length + t, own)
        np.testing.assert_array_equal(got[b], sequence[0, length : length + NEW])
    assert len(np.unique(got)) > 3, "a model that repeats one token would hide mistakes"


def test_padding_of_the_prompt_does_not_matter():
    model = build_decoder()
    noisy = np.where(np.arange(7) < LENGTHS[:, None], PROMPTS, (PROMPTS + 11) % DECODER.vocab_size)
    got, want = (RUN(model, tokens, LENGTHS, max_new_tokens=NEW, stop_token=-1) for tokens in (noisy, PROMPTS))
    assert (noisy != PROMPTS).any()
    np.testing.assert_array_equal(got, want)


def test_a_finished_sample_emits_the_stop_token_and_others_go_on():
    model = build_decoder()
    free = np.asarray(RUN(model, PROMPTS, LENGTHS, max_new_tokens=NEW, stop_token=-1))
    stop = free[0, 2]
    got = np.asarray(RUN(model, PROMPTS, LENGTHS, max_new_tokens=NEW, stop_token=stop))
    for b in range(3):
        ends = np.flatnonzero(free[b] == stop)
        end = ends[0] if len(ends) else NEW
        np.testing.assert_array_equal(got[b, :end], free[b, :end])
        assert (got[b, end:] == stop).all()


def test_one_new_token_is_the_prefill_alone():
    model = build_decoder()
    one = RUN(model, PROMPTS, LENGTHS, max_new_tokens=1, stop_token=-1)
    np.testing.assert_array_equal(one, RUN(model, PROMPTS, LENGTHS, max_new_tokens=NEW, stop_token=-1)[:, :1])
