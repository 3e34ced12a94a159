"""The omni model of transformers with random weights: logits, loss and gradients, under released names."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from safetensors.numpy import load_file
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.nemotron_h import NemotronHForCausalLM
from transformers.models.nemotron_h_omni import configuration_nemotron_h_omni as configuration
from transformers.models.nemotron_h_omni import modeling_nemotron_h_omni as modeling
from transformers.models.parakeet import ParakeetEncoder
from transformers.models.radio import RadioModel

from hetjax.models.parts.audio_clips import frames_of_clip, stack_clips
from hetjax.models.parts.mel import log_mel
from tests.harness.huggingface.omni_cases import AUDIO, IMAGE, Case
from tests.harness.transformers.hybrids import randomize as randomize_language
from tests.harness.transformers.wide import float64_for_float32

Omni = modeling.NemotronH_Omni_Reasoning_V3
_FILES = (Omni, NemotronHForCausalLM, ParakeetEncoder, RadioModel)


def width(wide: bool) -> contextlib.AbstractContextManager:
    """Where `wide`, a block in which the reference computes in float64 all through, casts to float32 included."""
    return float64_for_float32(*_FILES) if wide else contextlib.nullcontext()


def build(hf: dict[str, Any], *, wide: bool = False) -> Omni:
    """The model of a config.json, none of whose weights and buffers is at its start; to be used inside `width`."""
    torch.manual_seed(0)
    hf = {key: value for key, value in hf.items() if key not in ("model_type", "dtype")}
    config = configuration.NemotronH_Omni_Reasoning_V3_Config(**hf, video_token_id=19)
    for part in (config.text_config, config.vision_config, config.audio_config):
        part._attn_implementation = "eager"
    config.text_config._experts_implementation = "eager"
    model = Omni(config)
    dtype = torch.float64 if wide else torch.float32
    model.to(dtype).eval()
    model.vision_model.config.dtype = dtype
    randomize_language(model.language_model)
    random = np.random.default_rng(6)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.startswith("language_model") or not tensor.is_floating_point() or _is_constant(name):
                continue
            noise = torch.as_tensor(random.normal(size=tuple(tensor.shape)))
            if name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
                tensor.copy_(1 + 0.2 * noise.clamp(-3, 3))
            elif tensor.ndim < 2 or "embedding" in name or "register" in name or "bias_" in name:
                tensor.copy_(0.3 * noise)
            else:
                tensor.copy_(noise * tensor[0].numel() ** -0.5)
    return model


def _is_constant(name: str) -> bool:
    return any(part in name for part in ("lambda1", "inv_freq", "norm_mean", "norm_std", "featurizer"))


def run(model: Omni, case: Case, given: dict[str, Any]) -> dict[str, Any]:
    """{"logits" [R, V], "loss", "gradients" by name, "rows" [R]} of one prompt; "rows": the positions that are left."""
    model.zero_grad()
    inputs, kept = prompt(model, case, given)
    labels = torch.as_tensor(given["labels"][kept])[None]
    made = model(**inputs, labels=labels)
    made.loss.backward()
    return {
        "logits": made.logits[0].detach().numpy(),
        "loss": made.loss.detach().numpy(),
        "gradients": tensors(model, gradients=True),
        "rows": kept,
    }


def prompt(model: Omni, case: Case, given: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """(what the model takes, the positions of the prompt that are left)."""
    dtype = next(model.parameters()).dtype
    inputs, tokens = {}, given["tokens"]
    left = np.ones(len(tokens), bool)
    if given["images"]:
        side = model.vision_model.patch_size
        patches = [_patches(image, side) for image in given["images"]]
        inputs["pixel_values"] = torch.cat(patches).to(dtype)
        inputs["image_grid_hw"] = torch.tensor(
            [[length // side for length in image.shape[:2]] for image in given["images"]]
        )
    if len(given["video"]):
        # Its forward cannot take a video, nor prune one (it joins what is no list, and takes grids for squares), and
        # has no ids of its own for one beside images: so tokens come from where it makes them.
        frames = torch.from_numpy(np.ascontiguousarray(np.moveaxis(given["video"], -1, 1)))
        video = model.get_video_features(frames.to(dtype)).pooler_output
        height, width = (side // 2 for side in case.video_grid)
        mask = modeling.compute_retention_mask(
            video_embeds=video.detach().flatten(0, 1),
            thw=(len(video), height, width),
            spatial_merge_size=1,
            q=case.rate,
        )
        images = []
        if given["images"]:
            images = model.get_image_features(inputs.pop("pixel_values"), inputs.pop("image_grid_hw")).pooler_output
        pooled = (*images, video.flatten(0, 1)[mask])
        kind = "image" if given["images"] else "video"
        inputs["mm_encoder_outputs"] = {kind: BaseModelOutputWithPooling(pooler_output=pooled)}
        left[np.flatnonzero(tokens == IMAGE)[-len(mask) :]] = mask.numpy()
    if given["clips"]:
        waveforms, lengths = stack_clips(given["clips"])
        numbers = jnp.asarray(waveforms, given["video"].dtype)
        features = log_mel(numbers, lengths, model.config.audio_config.num_mel_bins)
        frames = frames_of_clip(lengths)
        inputs["input_features"] = torch.from_numpy(np.array(features))
        if len(lengths) > 1:
            # It counts a frame more than there is, and so a token more for a multiple of 8 frames.
            assert (frames % 8).all()
            inputs["input_features_mask"] = torch.arange(frames.max())[None] < torch.as_tensor(frames)[:, None]
    inputs["input_ids"] = torch.as_tensor(tokens[left])[None]
    assert (tokens == AUDIO).any() == bool(given["clips"])
    return inputs, np.flatnonzero(left)


def tensors(model: Omni, *, gradients: bool = False) -> dict[str, np.ndarray]:
    """Weights and buffers, or gradients, by the names of a file that transformers saves."""
    held = {name: each.data for name, each in model.named_parameters()}
    try:
        if gradients:
            for each in model.parameters():
                each.data = torch.zeros_like(each) if each.grad is None else each.grad.clone()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            return load_file(Path(folder) / "model.safetensors")
    finally:
        for name, each in model.named_parameters():
            each.data = held[name]


@torch.no_grad()
def continue_greedily(model: Omni, case: Case, given: dict[str, Any], count: int) -> list[int]:
    """The `count` most likely next tokens, each by a forward of everything before it."""
    tokens = given["tokens"]
    for _ in range(count):
        inputs, _ = prompt(model, case, {**given, "tokens": tokens})
        tokens = np.append(tokens, int(model(**inputs).logits[0, -1].argmax()))
    return tokens[-count:].tolist()


def _patches(image: np.ndarray, side: int) -> torch.Tensor:
    height, width = image.shape[0] // side, image.shape[1] // side
    cut = image.reshape(height, side, width, side, -1).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(cut.reshape(height * width, -1).copy())
