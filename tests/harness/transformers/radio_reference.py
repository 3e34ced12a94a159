"""RADIO and the vision projector as transformers has them, with random weights under the names of a release."""

import re

import numpy as np
import torch
from transformers.models.nemotron_h_omni import modeling_nemotron_h_omni as omni
from transformers.models.radio import RadioConfig as TheirConfig
from transformers.models.radio import RadioModel

from hetjax.models.huggingface.radio import radio_hf_config

NAMES = (
    (r"^embeddings\.patch_projection", "patch_generator.embedder"),
    (r"^embeddings\.video_patch_projection", "patch_generator.video_embedder"),
    (r"^embeddings\.position_embedding", "patch_generator.pos_embed"),
    (r"^embeddings\.cls_register_token", "patch_generator.cls_token.token"),
    (r"^encoder\.layer\.", "blocks."),
    (r"attention\.o_proj", "attn.proj"),
)
PROJECTOR = {"layer_norm": "mlp1.0", "linear_1": "mlp1.1", "linear_2": "mlp1.3"}


class Reference(torch.nn.Module):
    """The tower, and the projector where the config has one."""

    def __init__(self, config, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.config = config
        self.tower = RadioModel._from_config(TheirConfig(**radio_hf_config(config)), attn_implementation="eager")
        self.tower.make_preprocessor_external()
        self.projector = None
        if config.projector_width is not None:
            self.projector = omni.NemotronH_Omni_Reasoning_V3MultiModalProjector(
                config.merge**2 * config.width, config.projector_width, config.output_width
            )
        for name, weight in self.named_parameters():
            if "lambda1" in name:
                weight.requires_grad_(False)
            else:
                # Norms and biases too: at ones and zeros they hide mistakes.
                offset = 1.0 if re.search(r"norm\d?\.weight", name) else 0.0
                scale = 0.3 if weight.ndim < 2 or "embeddings.p" in name else weight.shape[1] ** -0.5
                weight.data = offset + scale * torch.randn_like(weight)

    def packed(self, images):
        """The features or tokens of images in one call, each [n, E]."""
        patches = [self._patches(image) for image in images]
        grids = torch.tensor([[side // self.config.patch_size for side in image.shape[:2]] for image in images])
        dtype = next(self.parameters()).dtype
        features = self.tower(torch.cat(patches).to(dtype), image_grid_hw=grids).features
        each = features.split(grids.prod(-1).tolist())
        return [self._finish(of_image, *grid) for of_image, grid in zip(each, grids.tolist(), strict=True)]

    def dense(self, image):
        """The same of one image, or of one tubelet whose frames are stacked in the channels."""
        pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)))[None]
        features = self.tower(pixels.to(next(self.parameters()).dtype)).features[0]
        return self._finish(features, *[side // self.config.patch_size for side in image.shape[:2]])

    def video(self, frames):
        """The same of all tubelets of a video [T, H, W, C], one behind the other."""
        count = self.config.tubelet
        tubelets = [np.concatenate([*frames[i : i + count]], axis=-1) for i in range(0, len(frames), count)]
        return torch.cat([self.dense(tubelet) for tubelet in tubelets])

    def widen(self):
        """In float64, the projector's norm as well, which transformers fixes to float32."""
        self.double()
        if self.projector is not None:
            norm = torch.nn.RMSNorm(self.projector.layer_norm.weight.shape, eps=1e-5, dtype=torch.float64)
            norm.weight = self.projector.layer_norm.weight
            self.projector.layer_norm = norm

    def tensors(self, of=lambda weight: weight):
        """Weights, or what `of` says of each, by their names in a checkpoint."""
        tower = {
            name: of(weight).detach().numpy()
            for name, weight in self.tower.named_parameters()
            if weight.requires_grad and of(weight) is not None
        }
        tensors = {}
        for name, tensor in tower.items():
            if found := re.search(r"(.*)attention\.q_proj\.(\w+)", name):
                parts = [tower[f"{found[1]}attention.{which}_proj.{found[2]}"] for which in "qkv"]
                name, tensor = f"{found[1]}attn.qkv.{found[2]}", np.concatenate(parts)
            elif re.search(r"attention\.[kv]_proj", name):
                continue
            for theirs, released in NAMES:
                name = re.sub(theirs, released, name)
            tensors[f"vision_model.radio_model.model.{name}"] = tensor
        if self.projector is not None:
            for name, weight in self.projector.named_parameters():
                layer, leaf = name.split(".")
                tensors[f"{PROJECTOR[layer]}.{leaf}"] = of(weight).detach().numpy()
        return tensors

    def _patches(self, image):
        side = self.config.patch_size
        height, width = image.shape[0] // side, image.shape[1] // side
        cut = image.reshape(height, side, width, side, -1).transpose(0, 2, 4, 1, 3)
        return torch.from_numpy(cut.reshape(height * width, -1).copy())

    def _finish(self, features, height, width):
        if self.projector is None:
            return features
        shuffled = omni.NemotronH_Omni_Reasoning_V3.pixel_shuffle(None, features.view(1, height, width, -1))
        return self.projector(shuffled.flatten(0, 2))
