"""RADIO beside transformers: features, tokens and the gradients of all weights."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from hetjax.models import RadioEncoder
from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.radio import IGNORED, radio_config, radio_constants, radio_entries, radio_hf_config
from tests.harness.huggingface.whole_models import read_arrays, write_tensors
from tests.harness.models.arrays import with_arrays
from tests.harness.models.radio_cases import TINY, image_inputs, images, video, video_inputs

torch = pytest.importorskip("torch")
reference = pytest.importorskip("tests.harness.transformers.radio_reference")

pytestmark = pytest.mark.live

CONFIGS = {
    "tokens": TINY,
    "deeper": dataclasses.replace(TINY, layers=3, heads=2, prefix_tokens=7, tubelet=3),
    "no-padding": dataclasses.replace(TINY, prefix_tokens=8, tubelet=None, norm_epsilon=1e-3),
    "features": dataclasses.replace(TINY, projector_width=None, output_width=None),
}


def encoder(config, tensors):
    """Our encoder with these tensors."""
    model = nnx.eval_shape(lambda: RadioEncoder(config, rngs=nnx.Rngs(0)))
    arrays = read_arrays(radio_entries(config), tensors, arrays_by_path(model))
    return with_arrays(model, {path: jnp.asarray(array) for path, array in arrays.items()})


def run(config, tensors, inputs, chosen):
    """(our tokens where `chosen` says, gradients of the sum of their sines by the checkpoint's names)."""
    definition, weights = nnx.split(encoder(config, tensors))

    def objective(weights):
        tokens = nnx.merge(definition, weights)(**inputs)["tokens"][0, chosen]
        return jnp.sum(jnp.sin(tokens)), tokens

    (_, tokens), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(weights)
    by_path = arrays_by_path(nnx.merge(definition, gradients))
    return np.asarray(tokens), write_tensors(radio_entries(config), by_path)


def chosen_rows(config, tokens, grids, tubelets=1):
    """Output rows in the reference's order: tokens as they are, features from merge order back to row by row."""
    if config.projector_width is not None:
        return np.concatenate(tokens)
    rows = []
    for of_image, (height, width) in zip(tokens, grids, strict=True):
        order = (of_image[:, None] * 4 + np.arange(4)).reshape(tubelets, height // 2, width // 2, 2, 2)
        rows.append(order.swapaxes(2, 3).reshape(-1))
    return np.concatenate(rows)


def compare(ours, theirs, gradients, want, tolerance, gradient_tolerance, positions_tolerance):
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error < tolerance
    lacking = {name for name in want if name not in gradients}
    assert not lacking
    for name, gradient in gradients.items():
        if name not in want:  # an embedder that nothing went through
            assert not gradient.any(), name
        else:
            error = np.abs(gradient - want[name]).max() / np.abs(want[name]).max()
            assert error < (positions_tolerance if "pos_embed" in name else gradient_tolerance), (name, error)


def of_gradient(weight):
    return weight.grad


def case(name, kind, dtype):
    config = CONFIGS[name]
    model = reference.Reference(config)
    # Positions are interpolated in float32 over there, which is exact where the grid keeps its size.
    grids = ((4, 8), (8, 8), (8, 2)) if dtype == np.float64 else ((4, 6), (2, 2), (8, 6), (6, 12), (2, 10))
    if dtype == np.float64:
        model.widen()
    if kind == "video":
        grids, frames = grids[:1], 2 * config.tubelet
        clip = video(frames, grids[0])
        theirs = model.video(clip)
        inputs, tokens = video_inputs(config, [[clip]], rows=96)
        chosen = chosen_rows(config, tokens[0], grids, tubelets=2)
    else:
        pictures = images(grids[:1] if kind == "one" else grids)
        theirs = torch.cat(model.packed(pictures) if kind == "packed" else [model.dense(each) for each in pictures])
        inputs, tokens = image_inputs(config, [pictures], rows=260)
        chosen = chosen_rows(config, tokens[0], grids[: len(pictures)])
    torch.sin(theirs).sum().backward()
    return config, model.tensors(), inputs, chosen, theirs.detach().numpy(), model.tensors(of_gradient)


CASES = [("tokens", kind) for kind in ("one", "packed", "dense", "video")] + [
    ("deeper", "packed"),
    ("deeper", "video"),
    ("no-padding", "packed"),
    ("features", "packed"),
    ("features", "video"),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_tokens_and_gradients_equal_transformers(name, kind):
    config, tensors, inputs, chosen, theirs, want = case(name, kind, np.float32)
    ours, gradients = run(config, tensors, inputs, chosen)
    compare(ours, theirs, gradients, want, 2e-5, 1e-4, 1e-4)


@pytest.mark.parametrize(("name", "kind"), [("tokens", "packed"), ("tokens", "video"), ("features", "packed")])
def test_in_float64_too(float64, name, kind):
    config, tensors, inputs, chosen, theirs, want = case(name, kind, np.float64)
    ours, gradients = run(config, tensors, inputs, chosen)
    # The gradient of the positions passes through float32 over there.
    compare(ours, theirs, gradients, want, 1e-9, 1e-9, 1e-6)


def test_their_checkpoint_comes_back_byte_for_byte(tmp_path):
    config = CONFIGS["features"]
    model = reference.RadioModel(reference.TheirConfig(**radio_hf_config(config)))
    model.save_pretrained(tmp_path)
    assert radio_config(json.loads((tmp_path / "config.json").read_text())) == config
    theirs = load_file(tmp_path / "model.safetensors")
    entries = radio_entries(config, prefix="")
    abstract = nnx.eval_shape(lambda: RadioEncoder(config, rngs=nnx.Rngs(0)))
    back = write_tensors(entries, read_arrays(entries, theirs, arrays_by_path(abstract))) | radio_constants(prefix="")
    assert back.keys() == {name for name in theirs if not re.search(IGNORED, name)}
    for name, tensor in back.items():
        assert (tensor.dtype, tensor.tobytes()) == (theirs[name].dtype, theirs[name].tobytes()), name
