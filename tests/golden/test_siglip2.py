"""SigLIP 2's vision tower against what transformers made of the same images."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from hetjax.models import Siglip2Encoder
from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.siglip2 import siglip2_entries
from tests.harness.huggingface.whole_models import read_arrays, write_tensors
from tests.harness.models.arrays import with_arrays
from tests.harness.models.radio_cases import image_inputs
from tests.harness.models.siglip2_cases import GOLDEN


def test_features_and_gradients_equal_transformers():
    tensors = load_file(Path(__file__).with_name("siglip2.safetensors"))
    inputs, (own,) = image_inputs(GOLDEN, [[tensors[f"input.{i}"] for i in range(3)]], rows=40)
    entries = siglip2_entries(GOLDEN, prefix="")
    model = nnx.eval_shape(lambda: Siglip2Encoder(GOLDEN, rngs=nnx.Rngs(0)))
    weights = {name.removeprefix("weight."): x for name, x in tensors.items() if name.startswith("weight.")}
    arrays = read_arrays(entries, weights, arrays_by_path(model))
    definition, state = nnx.split(with_arrays(model, {path: jnp.asarray(each) for path, each in arrays.items()}))

    def objective(state):
        features = nnx.merge(definition, state)(**inputs)["tokens"][0, np.concatenate(own)]
        return jnp.sum(jnp.sin(features)), features

    (_, features), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(state)
    want = tensors["output"]
    assert np.abs(features - want).max() / np.abs(want).max() < 2e-5
    got = write_tensors(entries, arrays_by_path(nnx.merge(definition, gradients)))
    assert got.keys() == weights.keys()
    for name, gradient in got.items():
        wanted = tensors[f"gradient.{name}"]
        # That of a key's bias is zero but for rounding: measured against that of the query's.
        largest = np.abs(tensors[f"gradient.{name}".replace("k_proj.bias", "q_proj.bias")]).max()
        assert np.abs(gradient - wanted).max() / largest < 1e-4, name
