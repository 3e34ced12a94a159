import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.models import ModelError
from tests.harness.models.clip_cases import TINY, build, images
from tests.harness.models.tiny_models import call, relative_error


def test_every_image_is_a_sequence_of_its_own(float64):
    model, pixels = build(TINY, np.float64), images(np.float64)
    tokens = call(model, images=pixels)["tokens"]
    assert tokens.shape == (2, 2 * 16, TINY.output_width)
    alone = call(model, images=pixels[1:, 1:])["tokens"]
    assert relative_error(tokens[1, 16:], alone[0]) < 1e-12


def test_stages_in_a_row_equal_the_whole():
    model = build()
    first, second = model.stage(0, 2), model.stage(1, 2)
    hidden = call(first, images=images())
    assert hidden["hidden"].shape == (2, 2, 32, TINY.width)  # 16 patches, the class token, 15 of padding
    tokens = call(second, **hidden)["tokens"]
    assert relative_error(tokens, call(model, images=images())["tokens"]) < 1e-6


def test_features_without_a_projector_in_bfloat16():
    config = dataclasses.replace(TINY, projector_width=None, output_width=None)
    tokens = call(build(config, jnp.bfloat16), images=images())["tokens"]
    assert tokens.dtype == jnp.bfloat16
    want = call(build(config), images=images())["tokens"]
    assert relative_error(np.asarray(tokens, np.float32), want) < 5e-2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image_size": 18}, "image_size % patch_size = 18 % 4"),
        ({"heads": 5}, "width % heads = 32 % 5"),
        ({"output_width": None}, "projector_width = 24 and output_width = None"),
        ({"layers": 0}, "layers = 0 must be positive"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change, told):
    with pytest.raises(ModelError, match=told):
        dataclasses.replace(TINY, **change)


def test_images_of_another_size_are_refused():
    with pytest.raises(ModelError, match=r"ClipEncoder: .* give \[batch, images, 16, 16, 3\]"):
        build()(images=images()[:, :, :12])
