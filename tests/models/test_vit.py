import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hetjax.models import ModelError
from tests.harness.models.tiny_models import (
    BATCH,
    IMAGES,
    VISION,
    build_vision,
    call,
    cast,
    flat,
    image_batch,
    relative_error,
)

PROJECTIONS = ("query", "key", "value")


def encoder_in_numpy(w, image, config):
    """Tokens of one image, one patch and head at a time."""

    def norm(x, scale, bias):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm_epsilon) * scale + bias

    def mlp(x, name, part):
        x = x @ part[*name, "up", "kernel"] + part[*name, "up", "bias"]
        x = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        return x @ part[*name, "down", "kernel"] + part[*name, "down", "bias"]

    side = config.patch_size
    patches = [
        image[row : row + side, column : column + side].ravel()
        for row in range(0, config.image_size, side)
        for column in range(0, config.image_size, side)
    ]
    x = np.stack(patches) @ w["patch", "kernel"] + w["patch", "bias"] + w["positions",]
    for i in range(config.layers):
        block = {path[2:]: weight[i] for path, weight in w.items() if path[0] == "layers"}
        normed = norm(x, block["attention_norm", "scale"], block["attention_norm", "bias"])
        x = x + block["attention", "output", "bias"]
        for h in range(config.heads):
            query, key, value = (
                normed @ block["attention", name, "kernel"][:, h] for name in ("query", "key", "value")
            )
            weights = np.exp(query @ key.T / math.sqrt(config.width // config.heads))
            x = x + weights / weights.sum(-1, keepdims=True) @ value @ block["attention", "output", "kernel"][h]
        x = x + mlp(norm(x, block["mlp_norm", "scale"], block["mlp_norm", "bias"]), ("mlp",), block)
    return mlp(norm(x, w["norm", "scale"], w["norm", "bias"]), ("projector",), w)


def test_tokens_equal_numpy(float64):
    model = cast(build_vision(), jnp.float64)
    # Biases start at zero, where a test could not see them.
    rng = np.random.default_rng(0)
    for _, weight in nnx.to_flat_state(nnx.state(model)):
        weight[...] += rng.normal(scale=0.1, size=weight.shape)
    nnx.update(model, state := nnx.state(model))
    images = image_batch(np.float64)
    got = call(model, images=images)["tokens"]
    assert got.shape == (BATCH, IMAGES * model.tokens_per_image, VISION.output_width)
    for b in range(BATCH):
        want = np.concatenate([encoder_in_numpy(flat(state), image, VISION) for image in images[b]])
        assert relative_error(got[b], want) < 1e-12


def test_tokens_per_image_is_the_number_of_patches():
    assert build_vision().tokens_per_image == (8 // 4) ** 2


def test_float_images_are_cast_to_the_weights():
    tokens = call(cast(build_vision(), jnp.bfloat16), images=image_batch())["tokens"]
    assert tokens.dtype == jnp.bfloat16
    assert relative_error(np.asarray(tokens, np.float32), call(build_vision(), images=image_batch())["tokens"]) < 5e-2


def test_images_of_another_size_are_refused():
    with pytest.raises(ModelError, match=r"\(2, 1, 8, 12, 3\).*\[batch, images, 8, 8, 3\]"):
        build_vision()(np.zeros((2, 1, 8, 12, 3), np.float32))


@pytest.mark.parametrize(
    ("change", "told"),
    [({"patch_size": 3}, "image_size % patch_size = 8 % 3"), ({"heads": 5}, "width % heads = 24 % 5")],
)
def test_config_that_does_not_fit_is_refused(change, told):
    with pytest.raises(ModelError, match=told):
        dataclasses.replace(VISION, **change)
