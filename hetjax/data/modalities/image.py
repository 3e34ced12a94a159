"""Prepare images of any size as patches of a vision encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from hetjax.data.media import is_source, read_image
from hetjax.data.modalities.config import ProcessorConfig
from hetjax.data.modalities.modality import ArraySpec, Budget, EncoderInputs, Medium, Modality, PromptPart, Resource
from hetjax.data.modalities.patches import (
    VISION,
    check_patches,
    check_pixels,
    patch_arrays,
    patch_shapes,
    sequence_cost,
    sized_pixels,
    token_grid,
)
from hetjax.data.modalities.prompt_order import image_items
from hetjax.data.modalities.square_image import SquareImage
from hetjax.errors import ConfigError
from hetjax.models.patch_rows import PatchRows

# H, W pixels


class Image(Modality[UInt8[np.ndarray, "H W 3"]]):
    """Images, which share the context of a sample with its text; an encoder's config has `image_rows: PatchRows`."""

    name = "image"
    placeholder = VISION
    resources = (Resource("image_rows", "rows of images", "processor.image_rows"),)
    suffixes = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm")
    shares_context = True

    def __init__(self, config: ProcessorConfig, encoder: object | None):
        for setting in ("images", "max_shift"):
            if given := getattr(config, setting):
                what = "the model has no vision encoder" if encoder is None else "the vision encoder takes any size"
                raise ConfigError(
                    f"processor.{setting} is {given}, which is for images of one size, but {what}; set it to 0"
                )
        self._config = config
        self._patches: PatchRows | None = getattr(encoder, "image_rows", None)
        self._encoder = encoder
        check_patches(config, "image_rows", self._patches)
        self.capacity = {"image_rows": config.image_rows}
        self.tokens = config.image_rows // config.resolution.merge**2
        if self._patches is not None:
            self.longest = self._patches.prefix_rows + config.resolution.max_patches

    @classmethod
    def for_encoder(cls, encoder: object | None) -> type[Modality]:
        """Return the class for images of one size where the encoder has an `image_size`, else this one."""
        return cls if getattr(encoder, "image_size", None) is None else SquareImage

    @classmethod
    def sized(
        cls, config: ProcessorConfig, amounts: Mapping[str, int], arrays: Sequence[np.ndarray] = ()
    ) -> ProcessorConfig:
        """Return the settings with so many rows of patches."""
        return dataclasses.replace(config, image_rows=amounts["image_rows"], images=0, max_shift=0)

    def read(self, value: object) -> UInt8[np.ndarray, "H W 3"]:
        """Read the pixels of a file or data URI, or given as uint8 [height, width, 3]."""
        return (
            read_image(value, self._config.limits)
            if is_source(value)
            else check_pixels(value, 3, "an image", "uint8 [height, width, 3]")
        )

    def prepare(self, media: Sequence[UInt8[np.ndarray, "H W 3"]], budget: Budget) -> list[PromptPart]:
        """Prepare all images of a sample, of the sizes at which they fit into the context together."""
        grids = self._config.resolution.image_grids([image.shape[:2] for image in media], budget.context, budget.taken)
        return [self._part(image, grid) for image, grid in zip(media, grids, strict=True)]

    def _part(self, image: UInt8[np.ndarray, "H W 3"], grid: tuple[int, int]) -> PromptPart:
        tokens = grid[0] * grid[1] // self._patches.merge**2
        return PromptPart(
            items=image_items(tokens),
            media=[Medium(self.name, sized_pixels(image, grid, self._config), tokens)],
            use={"image_rows": self._patches.rows(*grid)},
        )

    def token_grids(self, array: Float32[np.ndarray, "H W 3"]) -> Sequence[tuple[int, int]]:
        """Return those of an image."""
        return [token_grid(self._patches, array.shape[:2])]

    def amounts(self, array: Float32[np.ndarray, "H W 3"]) -> dict[str, int]:
        """Return the patch rows of an image."""
        return {"image_rows": self._patches.rows(*self._patches.grid(array.shape[:2]))}

    def cost(self, array: Float32[np.ndarray, "H W 3"]) -> float:
        """Return the multiplications of an image, which is a sequence of its own."""
        return sequence_cost(self._encoder, self.amounts(array)["image_rows"])

    def shapes(self) -> dict[str, ArraySpec]:
        """Return patches [rows, numbers], places [rows, 4] and segments [rows]."""
        return patch_shapes("", self._config.image_rows, self._patches)

    def encoder_inputs(self, arrays: Sequence[Float32[np.ndarray, "H W 3"]]) -> EncoderInputs:
        """Return the patches of normalized images."""
        packed = self._patches.pack_images(arrays, self._config.image_rows)
        return EncoderInputs(patch_arrays("", packed), packed.tokens)
