"""SigLIP 2's vision tower beside transformers: features and the gradients of all weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hetjax.models import Siglip2Encoder
from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.siglip2 import siglip2_config, siglip2_entries
from tests.harness.huggingface.whole_models import read_arrays, write_tensors
from tests.harness.models.arrays import with_arrays
from tests.harness.models.radio_cases import image_inputs, images
from tests.harness.models.siglip2_cases import FIXED, PACKED, fixed_images

torch = pytest.importorskip("torch")
reference = pytest.importorskip("tests.harness.transformers.siglip2_reference")

pytestmark = pytest.mark.live

FEATURES = {"projector_width": None, "output_width": None}
PACKED, FIXED = dataclasses.replace(PACKED, **FEATURES), dataclasses.replace(FIXED, **FEATURES)


def compare(config, dtype, tolerance, gradient_tolerance, grids=None):
    model = reference.reference(config).to(torch.float64 if dtype == np.float64 else torch.float32)
    if config.image_size is None:
        pictures = images(grids)
        inputs, (own,) = image_inputs(config, [pictures], rows=sum(h * w for h, w in grids) + 5)
        chosen = (0, np.concatenate(own))
        theirs = reference.packed(model, config, pictures)
    else:
        pixels = fixed_images(dtype)
        inputs, chosen = {"images": pixels}, ...
        flat = np.moveaxis(pixels.reshape(-1, *pixels.shape[2:]), -1, 1)
        theirs = model(torch.from_numpy(flat.copy())).last_hidden_state.reshape(len(pixels), -1, config.width)
    torch.sin(theirs).sum().backward()

    entries = siglip2_entries(config, prefix="")
    abstract = nnx.eval_shape(lambda: Siglip2Encoder(config, rngs=nnx.Rngs(0)))
    tensors = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    arrays = read_arrays(entries, tensors, arrays_by_path(abstract))
    definition, weights = nnx.split(with_arrays(abstract, {path: jnp.asarray(each) for path, each in arrays.items()}))

    def objective(weights):
        tokens = nnx.merge(definition, weights)(**inputs)["tokens"][chosen]
        return jnp.sum(jnp.sin(tokens)), tokens

    (_, ours), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(weights)
    theirs = theirs.detach().numpy()
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < tolerance
    got = write_tensors(entries, arrays_by_path(nnx.merge(definition, gradients)))
    want = {name: weight.grad.numpy() for name, weight in model.named_parameters()}
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        # That of a key's bias is zero but for rounding: measured against that of the query's.
        largest = np.abs(want[name.replace("k_proj.bias", "q_proj.bias")]).max()
        limit = 1e-6 if "position" in name and dtype == np.float64 else gradient_tolerance
        assert np.abs(got[name] - gradient).max() / largest < limit, name


@pytest.mark.parametrize("grids", [((4, 4),), ((2, 3), (4, 4), (1, 7), (6, 3), (9, 2))])
def test_images_of_any_size_equal_transformers(grids):
    compare(PACKED, np.float32, 2e-5, 1e-4, grids)


def test_images_of_one_size_equal_transformers():
    compare(FIXED, np.float32, 2e-5, 1e-4)


def test_in_float64_too(float64):
    # Positions are interpolated in float32 over there, which is exact where the grid keeps its size.
    compare(PACKED, np.float64, 1e-9, 1e-9, ((4, 4), (4, 4)))
    compare(FIXED, np.float64, 1e-9, 1e-9)


@pytest.mark.parametrize("config", [PACKED, FIXED])
def test_their_config_comes_back(config):
    assert siglip2_config(reference.reference(config).config.to_dict()) == config
