import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetjax.models import ModelError
from hetjax.models.dynamic_resolution import DynamicResolution

RULE = DynamicResolution()


@pytest.mark.parametrize(
    ("size", "grid", "small_grid"),
    [
        # By the image processor of transformers 5.23.0, with its own bounds and with 2000 patches at most.
        ((512, 512), (32, 32), (32, 32)),
        ((1080, 1920), (68, 120), (32, 60)),
        ((100, 100), (32, 32), (32, 32)),
        ((3000, 200), (188, 14), (170, 10)),
        ((17, 4000), (4, 358), (4, 358)),
        ((4320, 7680), (86, 154), (32, 60)),
        ((640, 481), (40, 32), (40, 32)),
    ],
)
def test_images_get_the_grids_of_transformers(size, grid, small_grid):
    assert RULE.image_grid(*size) == grid
    assert RULE.image_grid(*size, budget=2000) == small_grid


@pytest.mark.parametrize(
    ("size", "grid"),
    [((512, 512), (32, 32)), ((1080, 1920), (24, 42)), ((3000, 200), (124, 8)), ((17, 4000), (2, 492))],
)
def test_frames_get_the_grids_of_transformers(size, grid):
    assert RULE.video_grid(*size) == grid
    assert DynamicResolution(keep_video_aspect=False).video_grid(*size) == (32, 32)
    assert RULE.tokens(grid) <= 256


@settings(deadline=None)
@given(st.integers(1, 10_000), st.integers(1, 10_000), st.sampled_from([1024, 4096, 13312]))
def test_a_grid_is_even_and_within_its_budget(height, width, budget):
    grid = RULE.image_grid(height, width, budget)
    assert all(side > 0 and side % 2 == 0 for side in grid)
    # One that is as long as many hundreds of its widths may have two rows of patches beyond it.
    if max(height, width) < 200 * min(height, width):
        assert math.prod(grid) <= budget
    # Of a frame both sides are rounded, so that there may be some patches more than asked for.
    if max(height, width) < 4 * min(height, width):
        assert 0.85 * RULE.video_patches < math.prod(RULE.video_grid(height, width)) < 1.05 * RULE.video_patches


def test_images_that_share_a_context_are_scaled_until_they_fit():
    sizes = [(1080, 1920)] * 4
    grids = RULE.image_grids(sizes, context=4096, text_tokens=96)
    assert sum(map(RULE.tokens, grids)) <= 4096 - 4 - 96
    assert sum(map(RULE.tokens, grids)) > 0.95 * (4096 - 4 - 96)
    # Alone, an image has all of it; where there is too little, each keeps the least.
    assert RULE.image_grids(sizes[:1], context=16384) == [RULE.image_grid(1080, 1920)]
    assert RULE.image_grids(sizes, context=100) == [RULE.image_grid(1080, 1920, budget=1024)] * 4
    assert RULE.image_grids([], context=100) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"min_patches": 20000}, "min_patches = 20000 > max_patches = 13312"),
        ({"video_patches": 3}, "merge² = 4 or more"),
        ({"patch_size": 0}, "patch_size = 0 must be positive"),
    ],
)
def test_bounds_that_do_not_fit_are_refused(change, told):
    with pytest.raises(ModelError, match=told):
        DynamicResolution(**change)
    with pytest.raises(ModelError, match="0 x 5 pixels"):
        RULE.image_grid(0, 5)
