"""Check and resize pixels of images and videos, and name the ports of their patches."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from hetjax.data.modalities.config import ProcessorConfig
from hetjax.data.modalities.modality import ArraySpec, Placeholder
from hetjax.errors import ConfigError, DataError
from hetjax.models.parts.vision_block import VisionSizes, vision_layer_cost
from hetjax.models.patch_rows import PackedPatches, PatchRows, normalize, resize

# H, W pixels

VISION = Placeholder(
    name="image",
    module="vision",
    token="<image>",
    start="<img>",
    end="</img>",
    id_keys=("img_context_token_id", "image_token_id", "image_token_index"),
    # Of Qwen's models, and of LLaVA, which has the placeholders alone.
    spellings=(("<|image_pad|>", "<|vision_start|>", "<|vision_end|>"), ("<image>", "", "")),
)
"""The placeholders of the vision encoder's tokens, of images and of videos."""


def check_pixels(value: object, dims: int, what: str, wanted: str) -> UInt8[np.ndarray, "... H W 3"]:
    """Return pixels given as an array of so many dims. Raises DataError, with `what` it is and what is `wanted`."""
    array = np.asarray(value)
    if array.ndim != dims or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise DataError(f"{what} is {array.dtype} of shape {array.shape}; give a path, or {wanted}")
    return array


def check_patches(config: ProcessorConfig, setting: str, patches: PatchRows | None) -> None:
    """Raise ConfigError where a row has patches of a kind or a size that the encoder does not take."""
    rows = getattr(config, setting)
    if not rows:
        return
    if patches is None:
        raise ConfigError(f"processor.{setting} is {rows}, but the model takes none; set it to 0")
    sizes = (config.resolution.patch_size, config.resolution.merge)
    if sizes != (patches.patch_size, patches.merge):
        raise ConfigError(
            f"processor.resolution has patch_size {sizes[0]} and merge {sizes[1]}, but the vision encoder "
            f"{patches.patch_size} and {patches.merge}; set both alike"
        )


def sized_pixels(
    image: Shaped[np.ndarray, "H W 3"], grid: tuple[int, int], config: ProcessorConfig
) -> Float32[np.ndarray, "H2 W2 3"]:
    """Resize an image to a grid of (rows, columns) of patches, and normalize it."""
    size = config.resolution.patch_size
    resized = resize(image, grid[0] * size, grid[1] * size)
    return normalize(resized, config.pixel_mean, config.pixel_std, in_place=True)


def token_grid(patches: PatchRows, pixels: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the tokens of an image of (height, width) pixels."""
    rows, columns = patches.grid(pixels)
    return rows // patches.merge, columns // patches.merge


def sequence_cost(encoder: VisionSizes, rows: int) -> float:
    """Return the multiplications of the layers for a sequence of so many patch rows: with weights, and of attention."""
    return float(encoder.layers * (vision_layer_cost(encoder) * rows + 2 * encoder.width * rows**2))


def patch_shapes(prefix: str, rows: int, patches: PatchRows) -> dict[str, ArraySpec]:
    """Return the ports of a vision encoder for so many rows of patches."""
    numbers = patches.frames * 3 * patches.patch_size**2
    return {
        f"{prefix}patches": ArraySpec((rows, numbers), np.float32),
        f"{prefix}places": ArraySpec((rows, 4), np.int32),
        f"{prefix}segments": ArraySpec((rows,), np.int32),
    }


def patch_arrays(prefix: str, packed: PackedPatches) -> dict[str, np.ndarray]:
    """Return packed patches by port, as `patch_shapes` names them."""
    return {f"{prefix}{port}": getattr(packed, port) for port in ("patches", "places", "segments")}
