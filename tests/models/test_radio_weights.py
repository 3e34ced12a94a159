"""RADIO's and SigLIP 2's tensors and configs, to us and back."""

import dataclasses
import re

import numpy as np
import pytest
from flax import nnx

from hetjax.models import ModelError, RadioConfig, RadioEncoder, Siglip2Encoder
from hetjax.models.arrays import arrays_by_path
from hetjax.models.huggingface.radio import (
    IGNORED,
    radio_config,
    radio_constants,
    radio_entries,
    radio_hf_config,
    radio_omni_config,
)
from hetjax.models.huggingface.siglip2 import siglip2_config, siglip2_entries, siglip2_hf_config
from tests.harness.huggingface.whole_models import read_arrays, write_tensors
from tests.harness.models import radio_cases, siglip2_cases

FULL = RadioConfig(width=1280, layers=32, heads=16, mlp_width=5120, projector_width=20480, output_width=2688)

RELEASED = {
    "patch_size": 16,
    "downsample_ratio": 0.5,
    "vit_hidden_size": 1280,
    "projector_hidden_size": 20480,
    "video_pruning_rate": 0.7,
    "video_temporal_patch_size": 2,
    "llm_config": {"hidden_size": 2688},
    "vision_config": {
        "patch_size": 16,
        "preferred_resolution": [768, 768],
        "version": "c-radio_v4-h",
        "args": {
            "model": "vit_huge_patch16_224",
            "cpe_max_size": 2048,
            "register_multiple": 10,
            "teachers": [{"name": name} for name in ("clip", "siglip", "dino_v2", "sam")],
            "separate_video_embedder": True,
        },
    },
}


@pytest.mark.parametrize(
    ("kind", "config", "entries"),
    [
        (RadioEncoder, radio_cases.TINY, radio_entries),
        (RadioEncoder, dataclasses.replace(radio_cases.TINY, tubelet=None), radio_entries),
        (Siglip2Encoder, siglip2_cases.PACKED, siglip2_entries),
        (Siglip2Encoder, siglip2_cases.FIXED, siglip2_entries),
    ],
)
def test_every_weight_goes_out_and_comes_back(kind, config, entries):
    model = nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))
    arrays = arrays_by_path(radio_cases.randomized(model, np.float32))
    tensors = write_tensors(entries(config), arrays)
    assert sum(tensor.size for tensor in tensors.values()) == sum(array.size for array in arrays.values())
    back = read_arrays(entries(config), tensors, arrays_by_path(model))
    assert back.keys() == arrays.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(back[path], array)


def test_tensors_have_the_names_and_shapes_of_the_release():
    shapes = arrays_by_path(nnx.eval_shape(lambda: RadioEncoder(FULL, rngs=nnx.Rngs(0))))
    written = {}
    for entry in radio_entries(FULL):
        slots = [np.broadcast_to(np.float32(0), shapes[slot.path].shape)[slot.index] for slot in entry.slots]
        # The largest take seconds to copy; their shapes follow from their slots.
        if sum(slot.size for slot in slots) < 2**22:
            written.update(zip(entry.names, entry.write(*slots), strict=True))
        else:
            written.update(dict.fromkeys(entry.names))
    assert len(written) == 4 + 32 * 12 + 3
    body = "vision_model.radio_model.model."
    assert written[f"{body}patch_generator.embedder.weight"].shape == (1280, 768)
    assert written[f"{body}patch_generator.video_embedder.weight"].shape == (1280, 1536)
    assert written[f"{body}patch_generator.cls_token.token"].shape == (10, 1280)
    assert written[f"{body}blocks.31.attn.qkv.bias"].shape == (3840,)
    assert {"mlp1.0.weight", "mlp1.1.weight", "mlp1.3.weight", f"{body}blocks.0.attn.qkv.weight"} <= written.keys()


def test_constants_and_names_that_say_nothing():
    constants = radio_constants(prefix="")
    assert {name: array.shape for name, array in constants.items()} == {
        "radio_model.input_conditioner.norm_mean": (3, 1, 1),
        "radio_model.input_conditioner.norm_std": (3, 1, 1),
        "radio_model.summary_idxs": (2,),
    }
    assert re.search(IGNORED, "vision_model.radio_model.model.blocks.3.layer_scale2.lambda1")
    assert not re.search(IGNORED, "vision_model.radio_model.model.blocks.3.norm1.weight")


def test_configs_are_read_by_every_naming_and_come_back():
    full = dataclasses.replace(FULL, video_pruning_rate=0.7)
    assert radio_config(RELEASED) == full
    written = {**radio_omni_config(full), "text_config": {"hidden_size": 2688}}
    assert radio_config(written) == full
    released = {**radio_omni_config(full, released=True), "llm_config": {"hidden_size": 2688}}
    assert radio_config(released) == full
    assert released["vision_config"]["args"]["model"] == "vit_huge_patch16_224"
    assert released["vision_config"]["args"]["register_multiple"] == 10
    # The encoder released alone takes no videos, and has no projector.
    alone = {**RELEASED["vision_config"], "args": {**RELEASED["vision_config"]["args"]}}
    del alone["args"]["separate_video_embedder"]
    assert radio_config(alone) == dataclasses.replace(FULL, tubelet=None, projector_width=None, output_width=None)
    features = dataclasses.replace(radio_cases.TINY, projector_width=None, output_width=None)
    assert radio_config(radio_hf_config(features)) == features


def test_siglip2_configs_come_back():
    for config in (siglip2_cases.PACKED, siglip2_cases.FIXED):
        widths = {"projector_width": config.projector_width, "output_width": config.output_width}
        assert siglip2_config({"vision_config": siglip2_hf_config(config)}, **widths) == config


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: radio_config({"model_type": "radio", "use_swiglu_ffn": True}), "use_swiglu_ffn"),
        (lambda: radio_config({"args": {"model": "vit_x"}}), "'vit_x' is not known"),
        (lambda: radio_omni_config(radio_cases.TINY, released=True), "no backbone of a released config"),
        (lambda: siglip2_config({"hidden_act": "relu"}), "hidden_act is 'relu'"),
    ],
)
def test_configs_of_other_models_are_refused(call, told):
    with pytest.raises(ModelError, match=told):
        call()
