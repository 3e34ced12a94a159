"""Prepare images for a vision encoder that takes all of them in one size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
from jaxtyping import Float32, UInt8

from hetjax.data.media import is_source
from hetjax.data.media.image import open_image
from hetjax.data.modalities.config import ProcessorConfig, Square
from hetjax.data.modalities.modality import ArraySpec, Budget, EncoderInputs, Medium, Modality, PromptPart, Resource
from hetjax.data.modalities.patches import VISION, check_pixels
from hetjax.data.modalities.prompt_order import image_items
from hetjax.errors import ConfigError
from hetjax.models.patch_rows import normalize

# H, W pixels, both `image_size` of the encoder


class SquareImage(Modality[UInt8[np.ndarray, "H W 3"]]):
    """Images in squares of one size (`processor.square`), an encoder's `image_size`; it has `tokens_per_image`, too."""

    name = "image"
    placeholder = VISION
    resources = (Resource("images", "images", "processor.images"),)

    def __init__(self, config: ProcessorConfig, encoder: object):
        if config.image_rows:
            raise ConfigError(
                f"processor.image_rows is {config.image_rows}, but the vision encoder takes images of one size; set it "
                "to 0, and give processor.images"
            )
        self._config, self._size, self._per_image = config, encoder.image_size, encoder.tokens_per_image
        self.capacity = {"images": config.images}
        self.tokens = config.images * self._per_image

    @classmethod
    def sized(
        cls, config: ProcessorConfig, amounts: Mapping[str, int], arrays: Sequence[np.ndarray] = ()
    ) -> ProcessorConfig:
        """Return the settings with so many images."""
        return dataclasses.replace(config, images=amounts["images"], image_rows=0)

    def read(self, value: object) -> UInt8[np.ndarray, "H W 3"]:
        """Read an image of any size, as `hetjax.data.media.read_image` does, and resize it by bicubic resampling."""
        if is_source(value):
            image = open_image(value, self._config.limits)
        else:
            image = PIL.Image.fromarray(check_pixels(value, 3, "an image", "uint8 [height, width, 3]"))
        return np.asarray(square_image(image, self._size, self._config.square, self._config.pixel_mean))

    def prepare(self, media: Sequence[UInt8[np.ndarray, "H W 3"]], budget: Budget) -> list[PromptPart]:
        """Prepare each image by itself: all have as many tokens."""
        config, tokens = self._config, self._per_image
        pixels = [normalize(image, config.pixel_mean, config.pixel_std) for image in media]
        return [
            PromptPart(items=image_items(tokens), media=[Medium(self.name, image, tokens)], use={"images": 1})
            for image in pixels
        ]

    def amounts(self, array: Float32[np.ndarray, "H W 3"]) -> dict[str, int]:
        """Return one image: all cost the same."""
        return {"images": 1}

    def moved(self, array: Float32[np.ndarray, "H W 3"], random: np.random.Generator) -> Float32[np.ndarray, "H W 3"]:
        """Return an image moved by up to `processor.max_shift` pixels each way."""
        most = self._config.max_shift
        return shift_image(array, *random.integers(-most, most, size=2, endpoint=True))

    def shapes(self) -> dict[str, ArraySpec]:
        """Return images [images, H, W, 3]."""
        return {"images": ArraySpec((self._config.images, self._size, self._size, 3), np.float32)}

    def encoder_inputs(self, arrays: Sequence[Float32[np.ndarray, "H W 3"]]) -> EncoderInputs:
        """Return normalized images, zeros where there are fewer than fit."""
        (shape, dtype) = self.shapes()["images"]
        images = np.zeros(shape, dtype)
        for image, array in zip(images, arrays, strict=False):
            image[:] = array
        own = np.arange(len(arrays) * self._per_image, dtype=np.int32)
        return EncoderInputs({"images": images}, own.reshape(len(arrays), self._per_image))


def square_image(image: PIL.Image.Image, side: int, how: Square, mean: Sequence[float]) -> PIL.Image.Image:
    """Return an image in side x side pixels, as `processor.square` says and transformers' CLIP and LLaVA do."""
    width, height = image.size
    if how == "crop":
        shorter = min(width, height)
        width, height = (int(side * length / shorter) for length in (width, height))
        left, top = (width - side) // 2, (height - side) // 2
        resized = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + side, top + side))
    if how == "pad" and width != height:
        longer = max(width, height)
        padded = PIL.Image.new("RGB", (longer, longer), tuple(int(255 * share) for share in mean))
        padded.paste(image, ((longer - width) // 2, (longer - height) // 2))
        image = padded
    return image.resize((side, side), PIL.Image.Resampling.BICUBIC)


def shift_image(image: Float32[np.ndarray, "H W 3"], down: int, right: int) -> Float32[np.ndarray, "H W 3"]:
    """Move an image by whole pixels (negative: up, left); its border is repeated into the gap."""
    height, width, _ = image.shape
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return image[rows[:, None], columns]
