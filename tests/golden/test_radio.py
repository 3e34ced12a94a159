"""RADIO and its projector against what transformers made of the same images and video."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from hetjax.models import RadioEncoder
from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.radio import radio_entries
from tests.harness.huggingface.whole_models import read_arrays, write_tensors
from tests.harness.models.arrays import with_arrays
from tests.harness.models.radio_cases import GOLDEN, image_inputs, video_inputs


@pytest.fixture(scope="module")
def tensors():
    return load_file(Path(__file__).with_name("radio.safetensors"))


def named(tensors, kind):
    return {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}


def test_tokens_and_gradients_equal_transformers(tensors):
    pictures = [tensors[f"input.image.{i}"] for i in range(3)]
    inputs, (of_images,) = image_inputs(GOLDEN, [pictures], rows=128)
    clip, (of_videos,) = video_inputs(GOLDEN, [[tensors["input.video"]]], rows=80)
    inputs.update(clip)
    chosen = np.concatenate([*of_images, 128 // 4 + of_videos[0]])

    model, entries = nnx.eval_shape(lambda: RadioEncoder(GOLDEN, rngs=nnx.Rngs(0))), radio_entries(GOLDEN)
    arrays = read_arrays(entries, named(tensors, "weight."), arrays_by_path(model))
    definition, weights = nnx.split(with_arrays(model, {path: jnp.asarray(each) for path, each in arrays.items()}))

    def objective(weights):
        tokens = nnx.merge(definition, weights)(**inputs)["tokens"][0, chosen]
        return jnp.sum(jnp.sin(tokens)), tokens

    (_, tokens), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(weights)
    want = np.concatenate([*(tensors[f"output.image.{i}"] for i in range(3)), tensors["output.video"]])
    assert np.abs(tokens - want).max() / np.abs(want).max() < 2e-5
    got = write_tensors(entries, arrays_by_path(nnx.merge(definition, gradients)))
    wanted = named(tensors, "gradient.")
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert np.abs(got[name] - gradient).max() / np.abs(gradient).max() < 1e-4, name
