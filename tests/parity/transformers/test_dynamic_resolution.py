"""Sizes of images and frames, resizing and patches beside the processors of transformers."""

from types import SimpleNamespace

import numpy as np
import pytest

from hetjax.models.dynamic_resolution import DynamicResolution
from hetjax.models.huggingface.radio import MEAN, STD
from hetjax.models.patch_rows import PatchRows, normalize, resize

torch = pytest.importorskip("torch")
try:
    from transformers.models.nemotron_h_omni import image_processing_nemotron_h_omni as of_images
    from transformers.models.nemotron_h_omni import video_processing_nemotron_h_omni as of_videos

    # Without torchvision the modules are stand-ins, which raise when something is taken from them.
    of_images.get_patch_grid_size, of_videos.NemotronH_Omni_Reasoning_V3VideoProcessor  # noqa: B018
except (ImportError, RuntimeError) as error:  # a torchvision that was built for another torch raises the latter
    pytest.skip(f"no image processors of transformers: {error}", allow_module_level=True)

pytestmark = pytest.mark.live

SIZES = np.exp(np.random.default_rng(0).uniform(4, 8.5, (2000, 2))).astype(int).tolist()


@pytest.mark.parametrize("budget", [1024, 3000, 13312])
def test_image_grids(budget):
    for height, width in SIZES:
        want = of_images.get_patch_grid_size(height, width, 16, 2, 1024, budget)
        assert DynamicResolution().image_grid(height, width, budget) == want


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_video_grids(keep_aspect):
    rule = DynamicResolution(keep_video_aspect=keep_aspect)
    theirs = SimpleNamespace(
        video_target_num_patches=1024, _downsample_factor=2, video_maintain_aspect_ratio=keep_aspect
    )
    compute = of_videos.NemotronH_Omni_Reasoning_V3VideoProcessor._compute_target_patches
    for height, width in SIZES:
        assert rule.video_grid(height, width) == compute(theirs, height, width)[::-1]


@pytest.mark.parametrize("size", [(37, 53), (200, 100)])
def test_patches_of_an_image(size):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    processor = of_images.NemotronH_Omni_Reasoning_V3ImageProcessor(min_num_patches=64, max_num_patches=256)
    theirs = processor(torch.from_numpy(image).permute(2, 0, 1), return_tensors="np")
    grid = DynamicResolution(min_patches=64, max_patches=256).image_grid(*size)
    assert tuple(theirs["image_grid_hw"].reshape(-1)) == grid
    pixels = normalize(resize(image, 16 * grid[0], 16 * grid[1]), MEAN, STD)
    ours = PatchRows(patch_size=16).pack_images([pixels], rows=grid[0] * grid[1]).patches
    assert np.abs(ours - theirs["pixel_values"]).max() < 2e-4
