"""Images of one size cut into patches."""

from __future__ import annotations

from jaxtyping import Array, Float

# B batch · I images a sample · H W height and width in pixels · C channels · N patches an image


def cut_images(images: Float[Array, "B I H W C"], patch_size: int) -> Float[Array, "B*I N patch"]:
    """Each image's patches, row by row; a patch's numbers have the order row, column, channel."""
    batch, count, height, width, channels = images.shape
    cut = images.reshape(batch * count, height // patch_size, patch_size, width // patch_size, patch_size, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch * count, -1, patch_size**2 * channels)
