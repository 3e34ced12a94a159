"""LLaVA beside transformers: logits, loss, gradients, files in and out, and images as its processors prepare them."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

pytest.importorskip("torch")
pytest.importorskip("transformers")

import transformers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from hetjax.checkpoint.huggingface.run_files import _square_settings
from hetjax.data.chat import ProcessorConfig, RowCapacity
from hetjax.data.modalities.config import CLIP_MEAN, CLIP_STD
from hetjax.data.modalities.modality import Budget
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from tests.harness.convert_tool import convert
from tests.harness.huggingface.llava_model import CONFIG, given, our_batch
from tests.harness.huggingface.vision_language import logits, loss_and_gradients, modules_of
from tests.harness.parity.oracle import relative_error
from tests.harness.transformers.vision_language import build, run

pytestmark = pytest.mark.live


def theirs(model) -> dict:
    inputs = given()
    images = np.ascontiguousarray(np.moveaxis(inputs["images"], -1, 1))
    return run(model, inputs["labels"], input_ids=inputs["tokens"], pixel_values=images)


@pytest.mark.parametrize("change", [{}, {"vision_feature_layer": 1}, {"vision_feature_layer": -1}])
def test_logits_loss_and_gradients_equal_transformers(change):
    hf = {**CONFIG, **change}
    want, batch = theirs(build(hf)), our_batch(given())
    modules = modules_of(hf, want["weights"])
    assert relative_error(logits(modules, batch), want["logits"]) < 2e-5
    loss, gradients = loss_and_gradients(hf, modules, batch)
    assert relative_error(loss, want["loss"]) < 2e-5
    # Layers behind the one that is taken get no gradient over there, and are none of ours.
    assert gradients.keys() == want["gradients"].keys()
    for name, gradient in gradients.items():
        # That of a key's bias is zero but for rounding: measured against that of the query's.
        largest = np.abs(want["gradients"][name.replace("k_proj.bias", "q_proj.bias")]).max()
        assert np.abs(gradient - want["gradients"][name]).max() / largest < 1e-4, name


@pytest.mark.parametrize("tied", [False, True])
def test_every_byte_comes_back(tmp_path, tied):
    model = build({**CONFIG, "tie_word_embeddings": tied})
    model.save_pretrained(tmp_path / "hf")
    want = theirs(model)
    checkpoint = HuggingFaceCheckpoint(tmp_path / "hf")
    assert not checkpoint.unexpected()
    held = load_file(tmp_path / "hf" / "model.safetensors")
    assert relative_error(logits(modules_of(checkpoint.hf, held), our_batch(given())), want["logits"]) < 2e-5
    back = convert(convert(tmp_path / "hf", tmp_path / "ours"), tmp_path / "back")
    found = load_file(back / "model.safetensors")
    assert found.keys() == held.keys()
    assert all(found[name].tobytes() == tensor.tobytes() for name, tensor in held.items())
    again, told = transformers.AutoModelForImageTextToText.from_pretrained(
        back, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    np.testing.assert_array_equal(theirs(again)["logits"], want["logits"])


@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(30, 17), (16, 45), (21, 21)])
def test_images_become_squares_as_its_image_processors_make_them(how, size):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    said = _square_settings(16, how)
    kinds = {"LlavaImageProcessor": LlavaImageProcessorPil, "CLIPImageProcessor": CLIPImageProcessorPil}
    processor = kinds[said.pop("image_processor_type")](**said, image_mean=CLIP_MEAN, image_std=CLIP_STD)
    want = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    config = ProcessorConfig(images=1, square=how)
    images = RowCapacity.of(config, 99, {"vision": SimpleNamespace(image_size=16, tokens_per_image=16)}).modalities[
        "image"
    ]
    (part,) = images.prepare([images.read(pixels)], Budget(99, 0))
    np.testing.assert_allclose(part.media[0].array, np.moveaxis(want, 0, -1), atol=2e-6)
