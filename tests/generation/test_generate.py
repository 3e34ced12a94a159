import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import hetjax
from hetjax.errors import BatchError, ConfigError, GraphError
from hetjax.generation.generator import Generator
from hetjax.meshes import Layout, Placement
from hetjax.models import LanguageModel
from tests.harness.count_waits import count_waits
from tests.harness.generation.two_modules import (
    BATCH,
    DECODER,
    IMAGES,
    LENGTHS,
    MODULES,
    PLACEMENTS,
    POSITIONS,
    STOPS,
    TOKENS,
    B,
    R,
    state_on,
    trainer_on,
)
from tests.harness.models.generate import generate


@functools.cache
def generator_on(placement, compute_dtype=None, **options):
    trainer = trainer_on(placement, compute_dtype)
    return Generator(trainer, max_new_tokens=R, stop_token=stop_token(), **options)


@jax.jit
def run_on_one_device(modules, stop_token):
    """`tests.harness.models.generate`, without any mesh."""
    vision, llm = (nnx.merge(*modules[name]) for name in ("vision", "llm"))
    images = vision(images=IMAGES)["tokens"]
    return generate(llm, TOKENS, LENGTHS, images, POSITIONS, max_new_tokens=R, stop_token=stop_token)


def on_one_device(stop_token, scale=1.0, dtype="float32"):
    parts = {name: nnx.split(module) for name, module in MODULES.items()}
    weights = {
        name: (definition, jax.tree.map(lambda leaf: (leaf * scale).astype(dtype), state))
        for name, (definition, state) in parts.items()
    }
    return np.asarray(run_on_one_device(weights, stop_token))


@functools.cache
def stop_token():
    """A token that prompt `STOPS` emits as its third, not before."""
    third = on_one_device(-1)[STOPS, 2]
    assert third not in on_one_device(-1)[STOPS, :2]
    return int(third)


def test_the_reference_answers_differ_and_some_stop_early():
    free, stopped = on_one_device(-1), on_one_device(stop_token())
    assert len(np.unique(free, axis=0)) == B
    assert len(np.unique(free)) > 8
    assert (stopped != free).any(axis=1).sum() < B


@pytest.mark.parametrize("placement", list(PLACEMENTS)[:4])
def test_answers_equal_one_device(placement):
    answers = generator_on(placement).generate(state_on(placement), BATCH, LENGTHS)
    assert answers.dtype == np.int32
    np.testing.assert_array_equal(answers, on_one_device(stop_token()))


def test_a_batch_padded_to_the_same_size_reuses_the_programs(monkeypatch):
    generator, state = generator_on("disjoint"), state_on("disjoint")
    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), BATCH)
    assert {"vision encoding", "llm prefill", "llm decode step"} < set(generator.trace(shapes))
    generator.compile(shapes)
    monkeypatch.setattr(
        "hetjax.generation.generator.trace_decode_programs", lambda *_, **__: pytest.fail("traced again")
    )
    rows = [3, 0, 4, 1, 2, 1, 0]
    batch = {module: {port: array[rows] for port, array in inputs.items()} for module, inputs in BATCH.items()}
    np.testing.assert_array_equal(generator.generate(state, batch, LENGTHS[rows]), on_one_device(stop_token())[rows])


@pytest.fixture
def reads(monkeypatch):
    """A list that grows whenever the host reads an array's value or waits for one."""
    seen = []
    kind = type(jnp.zeros(1))
    value = vars(kind)["_value"]
    monkeypatch.setattr(kind, "_value", property(lambda array: (seen.append(array.shape), value.fget(array))[1]))
    wait = kind.block_until_ready
    monkeypatch.setattr(kind, "block_until_ready", lambda array: (seen.append(array.shape), wait(array))[1])
    return seen


def test_nothing_is_read_on_the_host_before_the_end(monkeypatch):
    generator, state = (
        generator_on("colocated, two chunks on each of two meshes"),
        state_on("colocated, two chunks on each of two meshes"),
    )
    generator.generate(state, BATCH, LENGTHS)  # what is made once is made
    with count_waits(monkeypatch) as waits:
        answers = generator.dispatch(generator.prepare(state), BATCH, LENGTHS)
        assert waits == []
        answers.read()
        assert waits


def test_early_stop_gives_the_same_answers_in_fewer_steps(reads):
    generator = Generator(trainer_on("one device each"), max_new_tokens=R, stop_token=stop_token(), check_every=2)
    state, stopping = state_on("one device each"), [STOPS]
    batch = {module: {port: array[stopping] for port, array in inputs.items()} for module, inputs in BATCH.items()}
    pending = generator.dispatch(generator.prepare(state), batch, LENGTHS[stopping])
    assert len(reads) == 2, "one boolean after two tokens, one after four"
    assert pending.made == 4 < R
    np.testing.assert_array_equal(pending.read(), on_one_device(stop_token())[stopping])
    assert generator.dispatch(generator.prepare(state), BATCH, LENGTHS).made == R


def test_weights_are_cast_once_to_the_compute_dtype():
    case = "one device each", "bfloat16"
    generator, state = generator_on(*case), state_on(*case)
    weights = generator.prepare(state)
    for name, stage in state.stages.items():
        computed_with, _ = weights[name]
        for path, param in stage.params.items():
            assert computed_with[path].dtype == jnp.bfloat16
            np.testing.assert_array_equal(computed_with[path], param.astype(jnp.bfloat16))
    assert weights["vision"][0]["patch/kernel"] is state.stages["vision"].params["patch/kernel"], "frozen: no copy"
    answers = generator.generate(state, BATCH, LENGTHS)
    np.testing.assert_array_equal(answers, on_one_device(stop_token(), dtype="bfloat16"))


def test_answers_follow_the_state_that_is_given():
    generator, state = generator_on("one device each"), state_on("one device each")
    smaller = jax.tree.map(lambda leaf: leaf * 0.75, state)
    got = generator.generate(smaller, BATCH, LENGTHS)
    np.testing.assert_array_equal(got, on_one_device(stop_token(), scale=0.75))
    assert (got != on_one_device(stop_token())).any()


class Scorer(nnx.Module):
    """Ends a graph with a loss alone."""

    def __init__(self, *, rngs):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, tokens):
        return {"loss": self.scale[...] * tokens.sum()}


class Wordless(LanguageModel):
    """Decodes, but not from ids."""

    def decode(self, cache, *, positions, image_tokens=None):
        return {}, cache


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            lambda rngs: Scorer(rngs=rngs),
            "module 'end'.*Scorer cannot generate: it has no init_cache, cache_dims",
        ),
        (lambda rngs: Wordless(DECODER, rngs=rngs), "Wordless.decode takes no input 'tokens', but image_tokens"),
    ],
    ids=["no decode", "no tokens"],
)
def test_a_module_that_cannot_generate_is_refused(module, message):
    graph = hetjax.ModuleGraph({"end": module})
    trainer = hetjax.Trainer(graph, Placement({"end": Layout(devices="0")}), optimizer=optax.sgd(0.1))
    with pytest.raises(GraphError, match=message):
        Generator(trainer, max_new_tokens=R, stop_token=0)


def without(batch, module, port):
    return {name: {p: a for p, a in ports.items() if (name, p) != (module, port)} for name, ports in batch.items()}


def test_senseless_requests_are_refused_by_name():
    generator, state = generator_on("one device each"), state_on("one device each")
    labelled = {**BATCH, "llm": {**BATCH["llm"], "labels": TOKENS}}
    uneven = {**BATCH, "vision": {"images": IMAGES[:3]}}
    for batch, lengths, message in (
        (BATCH, LENGTHS + 1, "lengths are 6 to 13, but a row of tokens has 12"),
        (BATCH, LENGTHS * 0, "lengths are 0 to 0"),
        (BATCH, LENGTHS[:4], r"lengths have shape \(4,\)"),
        (labelled, LENGTHS, "input 'llm.labels', but module 'llm' takes tokens"),
        (uneven, LENGTHS, "vision.images: 3, llm.tokens: 5"),
        (without(BATCH, "llm", "tokens"), LENGTHS, "nothing feeds its input 'tokens'"),
        (without(BATCH, "vision", "images"), LENGTHS, "nothing feeds its input 'images'"),
    ):
        with pytest.raises(BatchError, match=message):
            generator.generate(state, batch, lengths)
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        Generator(trainer_on("one device each"), max_new_tokens=0, stop_token=0)
