import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.models import ModelError
from hetjax.models.arrays import arrays_by_path
from tests.harness.models.arrays import with_arrays
from tests.harness.models.radio_cases import image_inputs, images
from tests.harness.models.siglip2_cases import FIXED, PACKED, build, fixed_images
from tests.harness.models.tiny_models import call, relative_error


def test_packed_images_equal_each_alone(float64):
    model, pictures = build(PACKED, np.float64), images(((4, 6), (3, 1), (5, 5)))
    inputs, (tokens,) = image_inputs(PACKED, [pictures], rows=60)
    packed = call(model, **inputs)["tokens"]
    assert packed.shape == (1, 60, PACKED.output_width) and np.isfinite(packed).all()
    for picture, own in zip(pictures, tokens, strict=True):
        alone, _ = image_inputs(PACKED, [[picture]], rows=len(own))
        assert relative_error(packed[0, own], call(model, **alone)["tokens"][0]) < 1e-10


def test_images_of_one_size_equal_the_same_as_rows(float64):
    packed = build(PACKED, np.float64)
    fixed = with_arrays(build(FIXED, np.float64), arrays_by_path(packed))
    pixels = fixed_images(np.float64)
    inputs, (own, _) = image_inputs(PACKED, [[*sample[:, :16, :16]] for sample in pixels], rows=32)
    inputs["patches"] = np.empty(inputs["patches"].shape)  # in float64
    for row, sample in zip(inputs["patches"], pixels, strict=True):
        for image, patches in zip(sample, np.split(row, len(sample)), strict=True):
            PACKED.image_rows.write_patches(image[None, :16, :16], patches)
    assert np.concatenate(own).tolist() == list(range(32))
    assert relative_error(call(fixed, images=pixels)["tokens"], call(packed, **inputs)["tokens"]) < 1e-12


@pytest.mark.parametrize("config", [PACKED, FIXED])
def test_stages_in_a_row_equal_the_whole(config):
    model = build(config)
    inputs = {"images": fixed_images()} if config is FIXED else image_inputs(config, [images()[:2]], rows=32)[0]
    first, second = model.stage(0, 2), model.stage(1, 2)
    hidden = call(first, **{port: inputs[port] for port in first.input_ports})
    tokens = call(second, **{port: {**inputs, **hidden}[port] for port in second.input_ports})["tokens"]
    assert relative_error(tokens, call(model, **inputs)["tokens"]) < 1e-6


def test_features_without_a_projector_in_bfloat16():
    config = dataclasses.replace(PACKED, projector_width=None, output_width=None)
    inputs, _ = image_inputs(config, [images()[:1]], rows=24)
    tokens = call(build(config, jnp.bfloat16), **inputs)["tokens"]
    assert tokens.dtype == jnp.bfloat16
    want = call(build(config), **inputs)["tokens"]
    assert relative_error(np.asarray(tokens, np.float32), want) < 5e-2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image_size": 20}, "20 // 4 = 5, but position_side = 4"),
        ({"heads": 5}, "width % heads = 32 % 5"),
        ({"output_width": None}, "projector_width = 40 and output_width = None"),
        ({"layers": 0}, "layers = 0 must be positive"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change, told):
    with pytest.raises(ModelError, match=told):
        dataclasses.replace(PACKED, **change)


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ModelError, match=r"give \[batch, images, 18, 18, 3\]"):
        build(FIXED)(images=fixed_images()[:, :, :16])
    inputs, _ = image_inputs(PACKED, [images()[:1]], rows=24)
    with pytest.raises(ModelError, match=r"give \[batch, patches, 48\]"):
        build(PACKED)(**{**inputs, "patches": inputs["patches"][..., :12]})
