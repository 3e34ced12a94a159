"""Split images of one size into patches."""

from __future__ import annotations

from jaxtyping import Array, Float

from hetjax.models.errors import ModelError

# B batch · I images a sample · H W height and width in pixels · C channels · N patches an image


def image_patches(images: Float[Array, "B I H W C"], patch_size: int) -> Float[Array, "B*I N patch"]:
    """Return each image's patches, line by line; a patch's numbers have the order row, column, channel."""
    batch, count, height, width, channels = images.shape
    split = images.reshape(batch * count, height // patch_size, patch_size, width // patch_size, patch_size, channels)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(batch * count, -1, patch_size**2 * channels)


def check_images(images: Float[Array, ...], side: int, channels: int, *, owner: str) -> None:
    """Raise ModelError, on behalf of `owner`, unless images have the shape [B, I, side, side, channels]."""
    if images.ndim != 5 or images.shape[2:] != (side, side, channels):
        raise ModelError(
            f"{owner}: images have shape {images.shape}; give [batch, images, {side}, {side}, {channels}] "
            "as the config says"
        )
