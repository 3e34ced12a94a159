import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hetjax.models import ModelError, RadioConfig, RadioEncoder
from hetjax.models.arrays import arrays_by_path
from hetjax.models.parts.video_pruning import keep_count
from tests.harness.models.arrays import with_arrays
from tests.harness.models.radio_cases import TINY, build, image_inputs, images, video, video_inputs
from tests.harness.models.tiny_models import call, flat, relative_error

FULL = RadioConfig(width=1280, layers=32, heads=16, mlp_width=5120, projector_width=20480, output_width=2688)


def count(module):
    return sum(math.prod(array.shape) for array in arrays_by_path(module).values())


def test_full_size_has_the_parameters_of_the_release():
    encoder = nnx.eval_shape(lambda: RadioEncoder(FULL, rngs=nnx.Rngs(0)))
    assert count(encoder.projector) == 159_912_960
    assert count(encoder) - count(encoder.projector) == 653_611_520


def test_packed_images_equal_each_alone(float64):
    model = build(dtype=np.float64)
    pictures = images(dtype=np.float64)
    inputs, (tokens,) = image_inputs(TINY, [pictures], rows=252)
    packed = call(model, **as_float64(inputs))["tokens"][0]
    for picture, own in zip(pictures, tokens, strict=True):
        rows = TINY.image_rows.rows(picture.shape[0] // 4, picture.shape[1] // 4)
        alone, ((places,),) = image_inputs(TINY, [[picture]], rows=rows)
        assert relative_error(packed[own], call(model, **as_float64(alone))["tokens"][0][places]) < 1e-10


def as_float64(inputs):
    return {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in inputs.items()}


def test_images_and_videos_share_a_row_and_see_nothing_of_each_other(float64):
    model = build(dtype=np.float64)
    image, (of_images,) = image_inputs(TINY, [images()[:2]], rows=64)
    clip, (of_videos,) = video_inputs(TINY, [[video(4), video(2, (2, 4), seed=2)]], rows=96)
    both = call(model, **as_float64(image), **as_float64(clip))["tokens"]
    assert both.shape == (1, (64 + 96) // 4, TINY.output_width)
    assert np.isfinite(both).all()
    alone = call(model, **as_float64(image))["tokens"], call(model, **as_float64(clip))["tokens"]
    of_images, of_videos = np.concatenate(of_images), np.concatenate(of_videos)
    assert relative_error(both[0, of_images], alone[0][0, of_images]) < 1e-12
    assert relative_error(both[0, 64 // 4 + of_videos], alone[1][0, of_videos]) < 1e-12


def test_padding_and_other_images_have_no_gradient():
    model = build()
    pictures = images()[:2]
    inputs, ((first, _),) = image_inputs(TINY, [pictures], rows=80)

    def of_patches(patches):
        return jnp.sum(model(**{**inputs, "patches": patches})["tokens"][0, first] ** 2)

    gradient = np.asarray(jax.jit(jax.grad(of_patches))(jnp.asarray(inputs["patches"])))[0]
    own = (inputs["segments"][0] == 1) & (inputs["places"][0, :, 0] >= 0)
    assert (np.abs(gradient).sum(axis=1) > 0).tolist() == own.tolist()


def test_a_bias_of_keys_changes_nothing_and_gets_no_gradient(float64):
    model = build(dtype=np.float64)
    inputs, _ = image_inputs(TINY, [images()[:2]], rows=64)
    inputs = as_float64(inputs)
    arrays, bias = arrays_by_path(model), "layers/block/attention/key/bias"
    moved = with_arrays(model, {**arrays, bias: arrays[bias] + 3})
    assert relative_error(call(moved, **inputs)["tokens"], call(model, **inputs)["tokens"]) < 1e-10
    gradients = jax.jit(jax.grad(lambda model: jnp.sum(model(**inputs)["tokens"] ** 2)))(model)
    for path, gradient in flat(nnx.state(gradients)).items():
        untouched = path[-3:] == ("attention", "key", "bias") or path[0] == "video_patch"
        assert gradient.any() != untouched, path


def test_stages_in_a_row_equal_the_whole():
    model = build(dataclasses.replace(TINY, layers=3))
    image, _ = image_inputs(TINY, [images()[:2]], rows=64)
    clip, _ = video_inputs(TINY, [[video(4)]], rows=80)
    inputs = {**image, **clip}
    out = dict(inputs)
    for index in range(3):
        stage = model.stage(index, 3)
        assert set(stage.optional_ports) <= set(stage.input_ports)
        out = call(stage, **{port: {**inputs, **out}[port] for port in stage.input_ports})
    assert relative_error(out["tokens"], call(model, **inputs)["tokens"]) < 1e-6


@pytest.mark.parametrize("stages", [1, 2])
def test_pruned_videos_keep_the_tokens_that_differ(stages):
    config = dataclasses.replace(TINY, video_pruning_rate=0.5)
    model = build(config)
    # The second tubelet is the first again; the third is another.
    clip = video(6)
    clip[2:4] = clip[:2]
    image, _ = image_inputs(config, [images()[:1]], rows=40)
    inputs, ((own,),) = video_inputs(config, [[clip]], rows=120)
    inputs.update(image)
    out = dict(inputs)
    for index in range(stages):
        stage = model.stage(index, stages)
        out = call(stage, **{port: {**inputs, **out}[port] for port in stage.input_ports})
    whole = call(build(), **inputs)["tokens"]
    kept, per_tubelet = np.asarray(out["kept"][0]), 6
    assert kept[:10].tolist() == list(range(10))  # all tokens of images, those of prefixes among them
    real = kept[10 : 10 + keep_count(3, per_tubelet, 0.5)]
    first, second, third = np.split(10 + own, 3)
    assert set(first) <= set(real) and not set(second) & set(real) and set(real) - set(first) <= set(third)
    assert len(real) == 9 and (kept[10 + 9 :] >= whole.shape[1]).all()
    assert relative_error(out["tokens"][0, : 10 + 9], whole[0, kept[: 10 + 9]]) < 1e-6


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_tubelets_of_equal_rows_are_attended_one_by_one(float64, rate):
    wide = dataclasses.replace(TINY, video_pruning_rate=rate)
    equal = dataclasses.replace(wide, tubelet_rows=44)
    clips = [video(6), video(2, (2, 4), seed=2)]
    image, _ = image_inputs(TINY, [images()[:1]], rows=36)
    results = []
    for config, rows in ((wide, 172), (equal, 176)):
        inputs, (own,) = video_inputs(config, [clips], rows=rows)
        out = call(build(config, dtype=np.float64), **as_float64({**image, **inputs}))
        results.append((out, own))
    (want, places), (got, own) = results
    if not rate:
        rows = [9 + np.concatenate(each) for each in (places, own)]
        assert relative_error(got["tokens"][0, rows[1]], want["tokens"][0, rows[0]]) < 1e-12
        return
    # Which tokens of each video are kept does not change, though they stand in other places.
    counts = [keep_count(3, 6, rate), keep_count(1, 2, rate)]
    for before, after, count in zip(places, own, counts, strict=True):
        kept = np.isin(9 + after, got["kept"][0])
        assert kept.sum() == count
        assert kept.tolist() == np.isin(9 + before, want["kept"][0]).tolist()
    count = 9 + sum(counts)
    assert relative_error(got["tokens"][0, 9:count], want["tokens"][0, 9:count]) < 1e-12


def test_features_without_a_projector_and_computation_in_bfloat16():
    config = dataclasses.replace(TINY, projector_width=None, output_width=None)
    inputs, ((own,),) = image_inputs(config, [images()[:1]], rows=36)
    features = call(build(config), **inputs)["tokens"]
    assert features.shape == (1, 36, TINY.width)
    half = call(build(config, dtype=jnp.bfloat16), **inputs)["tokens"]
    assert half.dtype == jnp.bfloat16
    rows = (own[:, None] * 4 + np.arange(4)).reshape(-1)
    assert relative_error(np.asarray(half, np.float32)[0, rows], features[0, rows]) < 5e-2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"heads": 5}, "width % heads = 32 % 5"),
        ({"projector_width": None}, "projector_width = None and output_width = 24"),
        ({"tubelet": 1}, "tubelet = 1 is an image"),
        ({"tubelet_rows": 12}, "tubelet_rows = 12 .*multiple of merge² = 4 above 12"),
        ({"video_pruning_rate": 1.0}, "below 1"),
        ({"video_pruning_rate": 0.5, "tubelet": None}, "tubelet = None"),
        ({"layers": 0}, "layers = 0 must be positive"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change, told):
    with pytest.raises(ModelError, match=told):
        dataclasses.replace(TINY, **change)


def test_inputs_that_do_not_fit_are_refused():
    model = build()
    inputs, _ = image_inputs(TINY, [images()[:1]], rows=40)
    with pytest.raises(ModelError, match="neither segments nor video_segments"):
        model()
    with pytest.raises(ModelError, match="give all of patches, places, segments"):
        model(patches=inputs["patches"], segments=inputs["segments"])
    with pytest.raises(ModelError, match=r"\(1, 38, 48\).*rows that 4 divides"):
        model(**{name: x[:, :38] for name, x in inputs.items()})
    equal = dataclasses.replace(TINY, tubelet_rows=36)
    with pytest.raises(ModelError, match="80 patch rows of videos, but tubelet_rows = 36"):
        build(equal)(**video_inputs(TINY, [[video(4)]], rows=80)[0])
    with pytest.raises(ModelError, match="36 patch rows, but rows_per_image = 16"):
        video_inputs(dataclasses.replace(TINY, tubelet_rows=16), [[video(4)]], rows=80)
    with pytest.raises(ModelError, match="lacks hidden"):
        model.stage(1, 2)(segments=inputs["segments"])
