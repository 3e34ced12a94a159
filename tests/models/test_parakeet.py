import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hetjax.models import ModelError, ParakeetConfig, ParakeetEncoder
from hetjax.models.mode import inference
from hetjax.models.parts.audio_clips import clip_token_positions, tokens_of_clip
from tests.harness.models.tiny_models import relative_error
from tests.harness.models.tiny_parakeet import TINY, build_parakeet, by_path, sounds

LENGTHS = ((2401, 4800), (0, 2401), (159, 0))
SAMPLES = 4800


def run(model, *, infer=False, **inputs):
    """(tokens, {path: running statistic after the call}); the model stays as it is."""
    definition, state = nnx.split(model)

    @jax.jit
    def call(state, inputs):
        called = nnx.merge(definition, state)
        with inference() if infer else contextlib.nullcontext():
            tokens = called(**inputs)["tokens"]
        return tokens, nnx.state(called, nnx.BatchStat)

    tokens, after = call(state, inputs)
    return np.asarray(tokens), by_path(after)


def statistics(model):
    return by_path(nnx.state(model, nnx.BatchStat))


def test_full_size_has_as_many_parameters_as_the_release():
    config = ParakeetConfig(projector_width=4096, output_width=2688)
    shapes = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: ParakeetEncoder(config, rngs=nnx.Rngs(0))), nnx.Param))
    counts = {True: 0, False: 0}
    for path, leaf in shapes:
        counts[path[0] == "projector"] += leaf.get_value().size
    assert counts == {False: 608_879_616, True: 15_205_376}


def test_a_clip_among_others_and_padded_equals_the_same_clip_alone(float64):
    model = build_parakeet(np.float64)
    inputs = sounds(LENGTHS, SAMPLES, np.float64)
    tokens = run(model, **inputs)[0]
    rows = tokens_of_clip(SAMPLES)
    assert tokens.shape == (3, 2 * rows, TINY.output_width)
    assert np.isfinite(tokens).all()
    for sample, lengths in enumerate(LENGTHS):
        found, clips = clip_token_positions(np.array(lengths), SAMPLES)
        for clip, length in enumerate(lengths):
            own = tokens[sample, found[clips == clip]]
            assert len(own) == tokens_of_clip(length)
            if len(own):
                alone = inputs["waveforms"][sample : sample + 1, clip : clip + 1, :length]
                want = run(model, waveforms=alone, lengths=np.array([[length]]))[0]
                assert relative_error(own, want[0]) < 1e-10


def test_statistics_of_the_batch_are_those_of_valid_tokens_alone(float64):
    """Clips of one length as one sample, as two, and beside padding."""
    model = build_parakeet(np.float64, batch_norm="train")
    waveforms = sounds(((3200, 3200),), 3200, np.float64)["waveforms"]
    one, after = run(model, waveforms=waveforms, lengths=np.array([[3200, 3200]]))
    padded = np.concatenate([waveforms.swapaxes(0, 1), np.ones((2, 2, 3200))], axis=1)
    padded = np.pad(padded, [(0, 0), (0, 0), (0, 1600)], constant_values=3)
    other, after_padded = run(model, waveforms=padded, lengths=np.array([[3200, 0, 0], [3200, 0, 0]]))
    rows, padded_rows = tokens_of_clip(3200), tokens_of_clip(4800)
    assert rows < padded_rows
    for clip in range(2):
        assert relative_error(other[clip, :rows], one[0, clip * rows :][:rows]) < 1e-10
    for path, before in statistics(model).items():
        np.testing.assert_allclose(after_padded[path], after[path], rtol=1e-10, err_msg=path)
        assert not np.array_equal(after[path], before), path


def test_a_call_that_infers_takes_running_statistics_and_leaves_them():
    inputs = sounds(((3200, 1600),), 3200)
    training, evaluating = build_parakeet(batch_norm="train"), build_parakeet()

    tokens, after = run(training, infer=True, **inputs)
    assert relative_error(tokens, run(evaluating, **inputs)[0]) < 1e-6
    assert relative_error(tokens, run(training, **inputs)[0]) > 1e-3
    assert all(np.array_equal(after[path], value) for path, value in statistics(training).items())


def test_a_batch_without_audio_moves_no_statistics():
    model = build_parakeet(batch_norm="train")
    tokens, after = run(model, **sounds(((0, 0),), 1600))
    assert np.isfinite(tokens).all()
    assert all(np.array_equal(after[path], value) for path, value in statistics(model).items())


def test_gradients_of_empty_and_silent_clips_are_finite():
    model = build_parakeet()
    definition, state = nnx.split(model)
    waveforms = jnp.zeros((1, 3, 1600)).at[0, 0].set(sounds(((1600,),), 1600)["waveforms"][0, 0])

    @jax.jit
    def gradients(state, waveforms):
        lengths = jnp.array([[1600, 1600, 0]])

        def objective(state, waveforms):
            return nnx.merge(definition, state)(waveforms=waveforms, lengths=lengths)["tokens"][:, :13].sum()

        return jax.grad(objective, argnums=(0, 1), allow_int=True)(state, waveforms)

    of_state, of_waveforms = gradients(state, waveforms)
    floats = [leaf for leaf in jax.tree.leaves(of_state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert all(np.isfinite(leaf).all() for leaf in (*floats, of_waveforms))
    assert np.any(of_waveforms[0, 0]) and not np.any(of_waveforms[0, 2])


def test_bfloat16_weights_give_bfloat16_tokens_near_those_of_float32():
    inputs = sounds(((3200, 1600),), 3200)
    got = run(build_parakeet(jnp.bfloat16), **inputs)[0]
    assert got.dtype == jnp.bfloat16
    assert relative_error(np.asarray(got, np.float32), run(build_parakeet(), **inputs)[0]) < 0.1


def test_independence_follows_the_norms():
    assert build_parakeet().independent_samples
    assert not build_parakeet(batch_norm="train").independent_samples


@pytest.mark.parametrize(
    ("shapes", "told"),
    [(((1, 2, 159), (1, 2)), r"\(1, 2, 159\)"), (((1, 2, 320), (1, 1)), r"lengths \(1, 1\)")],
)
def test_inputs_that_do_not_fit_are_refused(shapes, told):
    waveforms, lengths = (np.ones(shape, kind) for shape, kind in zip(shapes, (np.float32, np.int32), strict=True))
    with pytest.raises(ModelError, match=told):
        build_parakeet()(waveforms, lengths)
    with pytest.raises(ModelError, match="waveforms are int16"):
        build_parakeet()(np.ones((1, 1, 320), np.int16), np.ones((1, 1), np.int32))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"heads": 5}, r"width % \(2 \* heads\) = 32 % 10"),
        ({"conv_taps": 4}, "conv_taps = 4 must be odd"),
        ({"mel_bins": 20}, "20 % 8"),
        ({"batch_norm": "both"}, "'both'; give eval or train"),
        ({"batch_norm_momentum": 1.5}, "1.5 must be at most 1"),
        ({"output_width": None}, "projector_width = 48 and output_width = None"),
        ({"layers": 0}, "layers = 0 must be positive"),
    ],
)
def test_config_that_does_not_fit_is_refused(change, told):
    with pytest.raises(ModelError, match=told):
        dataclasses.replace(TINY, **change)
