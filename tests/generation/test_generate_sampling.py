"""Drawn answers do not depend on the placement, and several tokens may stop a sample."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import hetjax
from hetjax.errors import ConfigError
from hetjax.generation.generator import Generator
from hetjax.meshes import Layout, Placement
from hetjax.models import LanguageModel, MoEConfig, Sampling
from tests.harness.choices import others_slow
from tests.harness.generation.two_modules import (
    BATCH,
    DECODER,
    IMAGES,
    LENGTHS,
    MODULES,
    PLACEMENTS,
    POSITIONS,
    TOKENS,
    B,
    R,
    filled,
    state_on,
    trainer_on,
)
from tests.harness.models.generate import generate

SEED = 4
SAMPLING = Sampling(temperature=1.5, top_p=0.9, top_k=30)


@functools.cache
def on_one_device(seed=SEED, stops=()):
    parts = {name: nnx.split(module) for name, module in MODULES.items()}

    @jax.jit
    def run(parts):
        vision, llm = (nnx.merge(*parts[name]) for name in ("vision", "llm"))
        return generate(
            llm, TOKENS, LENGTHS, vision(images=IMAGES)["tokens"], POSITIONS,
            max_new_tokens=R, stop_token=stops, sampling=SAMPLING, seed=seed,
        )  # fmt: skip

    return np.asarray(run(parts))


def generator_on(placement, **options):
    return Generator(trainer_on(placement), max_new_tokens=R, **{"stop_token": (), "sampling": SAMPLING, **options})


def test_the_reference_draws_are_unlike_each_other_and_unlike_the_most_likely_tokens():
    drawn = on_one_device()
    assert len(np.unique(drawn, axis=0)) == B
    assert (drawn != on_one_device(SEED + 1)).mean() > 0.3
    greedy = generator_on("one device each", sampling=Sampling(temperature=0))
    assert (drawn != greedy.generate(state_on("one device each"), BATCH, LENGTHS)).mean() > 0.3


@pytest.mark.parametrize("placement", others_slow(list(PLACEMENTS)[:4], list(PLACEMENTS)[1:4:2]))
def test_drawn_answers_equal_one_device(placement):
    generator, state = generator_on(placement), state_on(placement)
    np.testing.assert_array_equal(generator.generate(state, BATCH, LENGTHS, SEED), on_one_device())
    other = generator.generate(state, BATCH, LENGTHS, SEED + 1)
    np.testing.assert_array_equal(other, on_one_device(SEED + 1))


def test_drawn_answers_of_a_qwen_with_experts_equal_one_device():
    """Its head is the embedding, split over the vocabulary."""
    config = dataclasses.replace(
        DECODER, experts=MoEConfig(count=4, top_k=2), query_key_norm=True, tie_embeddings=True, vocab_size=48
    )
    model = filled(functools.partial(LanguageModel, config))
    run = nnx.jit(functools.partial(generate, max_new_tokens=R, stop_token=(), sampling=SAMPLING, seed=SEED))
    want = np.asarray(run(model, TOKENS, LENGTHS))
    assert len(np.unique(want, axis=0)) == B
    trainer = hetjax.Trainer(
        hetjax.ModuleGraph({"llm": model}), Placement({"llm": Layout(expert=4, tensor=2)}), optimizer=optax.sgd(0.1)
    )
    generator = Generator(trainer, max_new_tokens=R, stop_token=(), sampling=SAMPLING)
    np.testing.assert_array_equal(generator.generate(trainer.init(), {"llm": {"tokens": TOKENS}}, LENGTHS, SEED), want)


def test_an_answer_ends_at_the_first_of_several_stop_tokens_and_all_together_end_early():
    free = on_one_device()
    stops = tuple(int(row[1]) for row in free)
    generator = generator_on("one device each", stop_token=list(stops), check_every=1)
    pending = generator.dispatch(generator.prepare(state_on("one device each")), BATCH, LENGTHS, SEED)
    assert pending.made == 2 < R
    got = pending.read()
    np.testing.assert_array_equal(got, on_one_device(stops=stops))
    np.testing.assert_array_equal(got[:, 2:], np.repeat(got[:, 1:2], R - 2, axis=1))


def test_a_seed_that_is_none_is_refused():
    generator = generator_on("one device each")
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match=f"seed is {seed}"):
            generator.generate(state_on("one device each"), BATCH, LENGTHS, seed)
