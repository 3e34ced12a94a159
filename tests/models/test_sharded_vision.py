"""Vision towers whose rows, heads and widths are split: outputs and gradients equal those of one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hetjax.meshes import Layout
from hetjax.models.parallel.layout_in_force import layout_in_force
from tests.harness.models import clip_cases, qwen3_vl_cases, radio_cases, siglip2_cases
from tests.harness.models.layouts import constraint_of, splits_of
from tests.harness.models.tiny_models import flat, relative_error

ALL, WHOLE_ROWS = Layout(data=2, context=2, tensor=2), Layout(data=2, tensor=4)


def pruned_videos(**change):
    """RADIO that drops video tokens, with images and videos of two samples."""
    config = dataclasses.replace(radio_cases.TINY, video_pruning_rate=0.5, **change)
    inputs, _ = radio_cases.image_inputs(config, [radio_cases.images(((2, 2), (2, 4))), []], rows=48)
    clips = [[radio_cases.video(6, (2, 4), seed=i)] for i in range(2)]
    inputs.update(radio_cases.video_inputs(config, clips, rows=96)[0])
    return radio_cases.build(config, dtype=np.float64), inputs


def videos_by_tubelet():
    """The same with as many rows for each tubelet, where attention needs no mask between them."""
    return pruned_videos(tubelet_rows=24)


def packed_siglip2():
    config = siglip2_cases.PACKED
    pictures = [radio_cases.images(((3, 5), (4, 4))), radio_cases.images(((2, 3),), seed=1)]
    inputs, _ = radio_cases.image_inputs(config, pictures, rows=32)
    return siglip2_cases.build(config, np.float64), inputs


def fixed_siglip2():
    return siglip2_cases.build(siglip2_cases.FIXED, np.float64), {"images": siglip2_cases.fixed_images(np.float64)}


def clip():
    return clip_cases.build(dtype=np.float64), {"images": clip_cases.images(np.float64)}


def qwen3_vl():
    return qwen3_vl_cases.build(dtype=np.float64)["vision"], qwen3_vl_cases.vision_inputs(np.float64)


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        (pruned_videos, ALL),
        pytest.param(videos_by_tubelet, ALL, marks=[pytest.mark.slow, pytest.mark.quick]),
        (videos_by_tubelet, WHOLE_ROWS),
        (packed_siglip2, ALL),
        (fixed_siglip2, ALL),
        (clip, ALL),
        pytest.param(qwen3_vl, Layout(data=2, tensor=2), marks=[pytest.mark.slow, pytest.mark.quick]),
    ],
)
def test_outputs_and_gradients_equal_one_device(float64, case, layout):
    model, inputs = case()
    definition, weights = nnx.split(model)

    def objective(weights):
        out = nnx.merge(definition, weights)(**inputs)
        return jnp.sum(jnp.sin(out["tokens"])), out

    def split(weights):
        with layout_in_force(constraint_of(layout), splits_of(layout)):
            return objective(weights)

    (_, got), gradients = jax.jit(jax.value_and_grad(split, has_aux=True))(weights)
    (_, want), wanted = jax.jit(jax.value_and_grad(objective, has_aux=True))(weights)
    assert relative_error(got["tokens"], want["tokens"]) < 1e-10
    if "kept" in want:
        np.testing.assert_array_equal(got["kept"], want["kept"])
    gradients = flat(gradients)
    for path, gradient in flat(wanted).items():
        assert np.abs(gradients[path] - gradient).max() <= 1e-10 * np.abs(gradient).max(), path
