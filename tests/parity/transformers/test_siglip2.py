"""SigLIP 2's vision tower beside transformers: features and the gradients of all weights."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import Siglip2Encoder
from models.arrays import arrays_by_path, with_arrays
from models.huggingface.entry import read_arrays, write_tensors
from models.huggingface.siglip2 import siglip2_config, siglip2_entries, siglip2_hf_config
from tests.models.radio_cases import image_inputs, images
from tests.models.siglip2_cases import FIXED, PACKED, fixed_images

torch = pytest.importorskip("torch")
siglip2 = pytest.importorskip("transformers.models.siglip2")
siglip = pytest.importorskip("transformers.models.siglip")

pytestmark = pytest.mark.live

FEATURES = {"projector_width": None, "output_width": None}
PACKED, FIXED = dataclasses.replace(PACKED, **FEATURES), dataclasses.replace(FIXED, **FEATURES)


def reference(config):
    if config.image_size is None:
        kind, settings = siglip2.Siglip2VisionModel, siglip2.Siglip2VisionConfig
    else:
        kind, settings = siglip.SiglipVisionModel, siglip.SiglipVisionConfig
    torch.manual_seed(0)
    model = kind._from_config(settings(**siglip2_hf_config(config)), attn_implementation="sdpa")
    for name, weight in model.named_parameters():
        offset = 1.0 if re.search(r"norm\d?\.weight", name) else 0.0
        scale = 0.3 if weight.ndim < 2 or "position" in name else weight[0].numel() ** -0.5
        weight.data = offset + scale * torch.randn_like(weight)
    return model


def theirs_packed(model, config, pictures):
    """Features of each image, the images padded to the longest as transformers wants them."""
    dtype = next(model.parameters()).dtype
    grids = [tuple(side // config.patch_size for side in picture.shape[:2]) for picture in pictures]
    longest = max(height * width for height, width in grids)
    pixels, mask = (
        torch.zeros(len(pictures), longest, config.patch_dim, dtype=dtype),
        torch.zeros(len(pictures), longest),
    )
    for i, picture in enumerate(pictures):
        height, width = grids[i]
        cut = picture.reshape(height, config.patch_size, width, config.patch_size, -1).swapaxes(1, 2)
        pixels[i, : height * width] = torch.from_numpy(cut.reshape(height * width, -1).copy())
        mask[i, : height * width] = 1
    hidden = model(pixels, mask, torch.tensor(grids)).last_hidden_state
    return torch.cat([hidden[i, : height * width] for i, (height, width) in enumerate(grids)])


def compare(config, dtype, tolerance, gradient_tolerance, grids=None):
    model = reference(config).to(torch.float64 if dtype == np.float64 else torch.float32)
    if config.image_size is None:
        pictures = images(grids)
        inputs, (own,) = image_inputs(config, [pictures], rows=sum(h * w for h, w in grids) + 5)
        chosen = (0, np.concatenate(own))
        theirs = theirs_packed(model, config, pictures)
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
    assert siglip2_config(reference(config).config.to_dict()) == config
