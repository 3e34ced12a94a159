"""Qwen3-VL beside transformers, dense and with experts: logits, loss, gradients, files in and out, answers."""

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from hetjax.data.modalities.prompt_order import video_items
from hetjax.models.dynamic_resolution import DynamicResolution
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from tests.harness.convert_tool import convert
from tests.harness.huggingface.qwen3_vl_model import CONFIGS, coordinates, given, our_batch, their_inputs
from tests.harness.huggingface.vision_language import logits, loss_and_gradients, modules_of
from tests.harness.parity.oracle import relative_error
from tests.harness.transformers.vision_language import build, run

pytestmark = pytest.mark.live


def theirs(model) -> dict:
    inputs = given()
    return run(model, inputs["labels"], **their_inputs(inputs))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_loss_and_gradients_equal_transformers(name):
    hf = CONFIGS[name]
    want = theirs(build(hf))
    modules = modules_of(hf, want["weights"])
    batch = our_batch(modules["vision"].config, given())
    assert relative_error(logits(modules, batch), want["logits"]) < 2e-5
    loss, gradients = loss_and_gradients(hf, modules, batch, want["weights"])
    assert relative_error(loss, want["loss"]) < 2e-5
    assert gradients.keys() == want["gradients"].keys()
    for key, gradient in gradients.items():
        assert relative_error(gradient, want["gradients"][key]) < 1e-4, key


def test_positions_are_those_of_transformers():
    model, inputs = build(CONFIGS["qwen3_vl"]), their_inputs(given())
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
    want, _ = model.model.get_rope_index(**{name: torch.as_tensor(inputs[name]) for name in names})
    np.testing.assert_array_equal(coordinates(inputs["input_ids"]), np.moveaxis(want.numpy(), 0, -1))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tied", [False, True])
def test_every_byte_comes_back(tmp_path, name, tied):
    model = build({**CONFIGS[name], "tie_word_embeddings": tied})
    model.save_pretrained(tmp_path / "hf")
    want = theirs(model)
    checkpoint = HuggingFaceCheckpoint(tmp_path / "hf")
    assert not checkpoint.unexpected()
    held = load_file(tmp_path / "hf" / "model.safetensors")
    modules = modules_of(checkpoint.hf, held)
    batch = our_batch(modules["vision"].config, given())
    assert relative_error(logits(modules, batch), want["logits"]) < 2e-5
    back = convert(convert(tmp_path / "hf", tmp_path / "ours"), tmp_path / "back")
    found = load_file(back / "model.safetensors")
    assert found.keys() == held.keys()
    assert all(found[key].tobytes() == tensor.tobytes() for key, tensor in held.items())
    again, told = transformers.AutoModelForImageTextToText.from_pretrained(
        back, output_loading_info=True, attn_implementation="eager", experts_implementation="eager"
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    np.testing.assert_array_equal(theirs(again)["logits"], want["logits"])


def test_images_get_the_grids_of_its_processor():
    ours = DynamicResolution(patch_size=16, merge=2, min_patches=256, max_patches=4096, rule="qwen")
    for height, width in np.exp(np.random.default_rng(0).uniform(3.5, 8, (2000, 2))).astype(int).tolist():
        want = smart_resize(height, width, factor=32, min_pixels=256 * 256, max_pixels=4096 * 256)
        assert tuple(16 * side for side in ours.image_grid(height, width)) == want, (height, width)


@pytest.mark.parametrize("frames", [4, 7])
def test_times_of_a_video_are_those_of_its_processor(frames):
    indices = (3 * np.arange(frames)).tolist()
    want = Qwen3VLProcessor._calculate_timestamps(None, list(indices), 24.0, 2)
    items = video_items([index / 24 for index in indices], 2, 5, lines="seconds")
    assert items[::2] == [f"<{second:.1f} seconds>" for second in want]
