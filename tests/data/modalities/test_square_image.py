from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hetjax.data.chat import ProcessorConfig, RowCapacity
from hetjax.data.media import MediaLimits
from hetjax.data.modalities.modality import Budget
from hetjax.data.modalities.square_image import shift_image
from hetjax.errors import ConfigError, DataError

RED = np.array([1.0, -1.0, -1.0], np.float32)
WHITE, BLACK = np.ones(3, np.float32), -np.ones(3, np.float32)


def fitted(size, **settings):
    """The modality of images for an encoder of one size, with what SigLIP normalizes by."""
    half = (0.5, 0.5, 0.5)
    config = ProcessorConfig(**{"images": 2, "pixel_mean": half, "pixel_std": half, **settings})
    encoder = SimpleNamespace(image_size=size, tokens_per_image=4)
    return RowCapacity.of(config, 99, {"vision": encoder}).modalities["image"]


def load_image(value, size):
    images = fitted(size)
    (part,) = images.prepare([images.read(value)], Budget(99, 0))
    return part.media[0].array


def loaded(tmp_path, image, suffix="png", size=4, **options):
    path = tmp_path / f"image.{suffix}"
    image.save(path, **options)
    result = load_image(path, size)
    assert result.shape == (size, size, 3)
    assert result.dtype == np.float32
    return result


def palette(transparent=False):
    image = Image.new("P", (5, 3), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    if transparent:
        image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.new("1", (5, 3), 1), "png", WHITE),
        (Image.new("L", (5, 3), 255), "png", WHITE),
        (Image.new("LA", (5, 3), (0, 255)), "png", BLACK),
        (Image.new("LA", (5, 3), (0, 0)), "png", WHITE),
        (palette(), "png", RED),
        (palette(transparent=True), "png", WHITE),
        (Image.new("RGB", (5, 3), "red"), "png", RED),
        (Image.new("RGBA", (5, 3), (255, 0, 0, 255)), "png", RED),
        (Image.new("RGBA", (5, 3), (255, 0, 0, 0)), "png", WHITE),
        (Image.new("CMYK", (5, 3), (0, 255, 255, 0)), "tiff", RED),
        (Image.new("I;16", (5, 3), 65535), "png", WHITE),
        (Image.new("I;16", (5, 3), 0), "png", BLACK),
        (Image.new("I", (5, 3), 65535), "tiff", WHITE),
        (Image.new("F", (5, 3), 1.0), "tiff", WHITE),
        (Image.new("F", (5, 3), float("nan")), "tiff", BLACK),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_rgb_in_minus_one_to_one(tmp_path, image, suffix, expected):
    result = loaded(tmp_path, image, suffix)
    np.testing.assert_allclose(result, np.broadcast_to(expected, result.shape), atol=1e-6)


@pytest.mark.parametrize("mode", ["La", "PA", "RGBa", "RGBX", "YCbCr", "HSV"])
def test_modes_that_only_some_files_carry_convert_too(tmp_path, monkeypatch, mode):
    white = Image.new("RGBA" if mode == "RGBa" else "LA" if mode in ("La", "PA") else "RGB", (5, 3), "white")
    path = tmp_path / "image.png"
    white.save(path)
    image = white.convert(mode)
    monkeypatch.setattr(Image, "open", lambda _, formats: image)
    np.testing.assert_allclose(load_image(path, 4), 1.0, atol=1e-6)


def test_half_transparent_black_on_white_is_half_grey(tmp_path):
    result = loaded(tmp_path, Image.new("RGBA", (5, 3), (0, 0, 0, 128)))
    np.testing.assert_allclose(result, (127 / 255 - 0.5) / 0.5, atol=1e-6)


def test_sixteen_bit_grey_keeps_its_full_range(tmp_path):
    levels = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    result = loaded(tmp_path, Image.fromarray(levels))
    np.testing.assert_allclose(result[..., 0], (levels / 65535.0 - 0.5) / 0.5, atol=1 / 255)


def test_same_size_pixels_are_only_normalised(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    result = loaded(tmp_path, Image.fromarray(pixels), size=6)
    np.testing.assert_allclose(result, (pixels / 255.0 - 0.5) / 0.5, atol=1e-6)


def test_resize_is_bicubic(tmp_path):
    # The cubic kernel with a = -1/2 (R. Keys, 1981), by hand: rows sampled at (i + 1/2) / 2 - 1/2, edges renormalised.
    row = np.array([10, 200, 60, 120, 90], float)
    image = Image.fromarray(np.repeat(row[None], 5, axis=0).astype(np.uint8))

    def kernel(x):
        x = abs(x)
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    expected = []
    for i in range(10):
        weights = np.array([kernel((i + 0.5) / 2 - 0.5 - j) for j in range(5)])
        expected.append(np.clip(weights @ row / weights.sum(), 0, 255))
    result = loaded(tmp_path, image, size=10)
    np.testing.assert_allclose(result[0, :, 0], np.array(expected) / 127.5 - 1, atol=1.01 / 127.5)


def test_an_image_becomes_a_square_as_the_setting_says():
    columns = np.repeat(np.array([10, 90, 170, 250], np.uint8)[None, :, None], 2, axis=0)  # 2 high, 4 wide
    pixels = np.broadcast_to(columns, (2, 4, 3)).copy()
    half = np.float32(127.5)
    shown = {how: fitted(2, square=how).read(pixels)[..., 0].tolist() for how in ("crop", "pad")}
    assert shown["crop"] == [[90, 170], [90, 170]]
    image = fitted(4, square="pad").read(pixels)[..., 0]
    np.testing.assert_array_equal(image[1:3], columns[..., 0])
    assert (image[[0, 3]] == int(half)).all()
    assert fitted(4, square="stretch").read(pixels)[..., 0].tolist() == [[10, 90, 170, 250]] * 4
    with pytest.raises(ConfigError, match=r"processor.square is 'fit'; give one of stretch, crop, pad"):
        fitted(4, square="fit")


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((4, 4), np.uint8)
    pixels[0] = 255  # a white top row, stored by a camera that was turned
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    result = loaded(tmp_path, Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(result[..., 0], np.rot90(pixels, -1) / np.float32(127.5) - 1)


def test_a_png_cut_anywhere_is_an_error_or_whole(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    whole, data = load_image(path, 8), path.read_bytes()
    failed = 0
    for length in range(len(data)):
        path.write_bytes(data[:length])
        try:
            result = load_image(path, 8)
        except DataError as error:
            assert str(path) in str(error)
            failed += 1
        else:
            np.testing.assert_array_equal(result, whole)
    assert failed >= len(data) - 20  # after the last pixel: two checksums of 4 bytes and the closing chunk of 12


def test_missing_empty_foreign_and_folder_are_data_errors_that_say_so(tmp_path):
    with pytest.raises(DataError, match=r"absent\.png' does not exist"):
        load_image(tmp_path / "absent.png", 4)
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png' is an empty file"):
        load_image(tmp_path / "empty.png", 4)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text\.png' is of no known image format"):
        load_image(tmp_path / "text.png", 4)
    with pytest.raises(DataError, match="is a folder; give a regular file"):
        load_image(tmp_path, 4)


def test_shifted_image_moves_its_pixels_and_repeats_its_border():
    image = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    moved = shift_image(image, 1, -1)
    assert np.array_equal(moved[1, 0], image[0, 1])
    assert np.array_equal(moved[0], np.stack([image[0, 1]] * 2))
    assert np.array_equal(shift_image(image, 0, 0), image)


def test_a_row_holds_images_and_zeros_behind_them_and_says_which_tokens_are_theirs():
    images = fitted(4)
    assert images.tokens == 8 and images.shapes()["images"].shape == (2, 4, 4, 3)
    one = np.ones((4, 4, 3), np.float32)
    made = images.encoder_inputs([one])
    np.testing.assert_array_equal(made.arrays["images"], [one, 0 * one])
    assert np.asarray(made.tokens).tolist() == [[0, 1, 2, 3]]
    assert np.asarray(images.encoder_inputs([]).tokens).shape == (0, 4)


def test_limits_and_arrays_of_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    np.testing.assert_allclose(load_image(pixels, 6), (pixels / 255.0 - 0.5) / 0.5, atol=1e-6)
    with pytest.raises(DataError, match="an image is float64"):
        load_image(np.zeros((4, 4, 3)), 6)


def test_a_picture_larger_than_the_limit_is_refused(tmp_path):
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="30 x 30 pixels"):
        fitted(4, limits=MediaLimits(image_pixels=100)).read(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("settings", "image_size", "message"),
    [
        ({"image_rows": 8}, 4, "image_rows is 8, but the vision encoder takes images of one size"),
        ({"images": 1}, None, "images is 1, which is for images of one size, but the vision encoder takes any size"),
        ({"max_shift": 1}, None, "max_shift is 1, which is for images of one size"),
    ],
)
def test_settings_of_the_other_kind_of_encoder_are_refused(settings, image_size, message):
    encoder = SimpleNamespace(image_size=image_size, tokens_per_image=4)
    with pytest.raises(ConfigError, match=message):
        RowCapacity.of(ProcessorConfig(**settings), 99, {"vision": encoder})
