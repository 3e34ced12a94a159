import jax
import numpy as np
import pytest

from hetjax.models import ModelError
from hetjax.models.patch_rows import NO_SEGMENT, PADDING, PatchRows, normalize, resize

LAYOUT = PatchRows(patch_size=2, merge=2, prefix_tokens=5)
VIDEO = PatchRows(patch_size=2, merge=2, prefix_tokens=5, frames=2)


def numbered(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_rows_of_an_image_one_patch_at_a_time():
    image = numbered(8, 4, 3)
    rows = LAYOUT.pack_images([image], rows=20)
    assert rows.patches.shape == (20, 12)
    # 5 prefix tokens fill two squares of 4 rows: padding, then the tokens, so that an image's rows are one run.
    assert rows.places[:3].tolist() == [[PADDING] * 4] * 3
    assert rows.places[3:8, 0].tolist() == [-1, -2, -3, -4, -5]
    assert rows.segments.tolist() == [NO_SEGMENT] * 3 + [1] * 13 + [NO_SEGMENT] * 4
    squares = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
    for row, (down, right) in zip(range(8, 16), squares, strict=True):
        assert rows.places[row].tolist() == [down, right, 4, 2]
        pixels = image[2 * down : 2 * down + 2, 2 * right : 2 * right + 2]
        assert rows.patches[row].tolist() == np.moveaxis(pixels, -1, 0).reshape(-1).tolist()
    assert not rows.patches[:8].any() and not rows.patches[16:].any()
    assert [each.tolist() for each in rows.tokens] == [[2, 3]]


def test_the_channel_may_come_last():
    layout = PatchRows(patch_size=2, channels_first=False)
    image = numbered(4, 6, 3)
    rows = layout.pack_images([image], rows=6)
    assert rows.places[:, :2].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert rows.patches[4].tolist() == image[2:4, 2:4].reshape(-1).tolist()


def test_tubelets_of_a_video_follow_each_other_and_videos_leave_one_out():
    first, second = numbered(4, 4, 4, 3), numbered(2, 4, 8, 3) + 1000
    rows = VIDEO.pack_videos([first, second], rows=40)
    assert rows.segments[rows.segments > 0].tolist() == [1] * 9 + [2] * 9 + [4] * 13
    assert [each.tolist() for each in rows.tokens] == [[2, 5], [8, 9]]
    # frame, channel, row, column
    assert rows.patches[20].tolist() == np.moveaxis(first[2:, :2, :2], -1, 1).reshape(-1).tolist()
    assert sum(VIDEO.rows(*grid) for grid in [(2, 2), (2, 2), (2, 4)]) == 40


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ModelError, match="need 24 patch rows or more, but there are 20"):
        LAYOUT.pack_images([numbered(4, 4, 3)] * 2, rows=20)
    with pytest.raises(ModelError, match=r"4 x 6 pixels.* 2 \* 2 must divide both"):
        LAYOUT.pack_images([numbered(4, 6, 3)], rows=20)
    with pytest.raises(ModelError, match="3 frames, but a patch spans 2"):
        VIDEO.pack_videos([numbered(3, 4, 4, 3)], rows=40)


@pytest.mark.parametrize("size", [(24, 40), (64, 20), (31, 57)])
def test_resizing_equals_that_of_jax(size):
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)
    got = resize(image, *size)
    assert got.dtype == np.float32
    want = jax.image.resize(image.astype(np.float32), (*size, 3), "cubic", antialias=True)
    assert np.abs(got - want).max() < 1e-2  # of 255
    np.testing.assert_array_equal(resize(image, 37, 53), image)


def test_resizing_keeps_what_leaves_the_range_of_pixels():
    image = np.zeros((8, 8, 1), np.uint8)
    image[:, 4:] = 255
    assert resize(image, 16, 16).max() > 256 and resize(image, 16, 16).min() < -1


def test_pixels_are_normalized_by_channel():
    image = np.array([[[0, 51, 255]]], np.uint8)
    np.testing.assert_allclose(normalize(image, (0.5, 0.1, 0.0), (0.5, 0.2, 2.0)), [[[-1, 0.5, 0.5]]], rtol=1e-6)
