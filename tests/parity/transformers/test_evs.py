"""Video tokens kept, beside the mask of transformers."""

import numpy as np
import pytest

from hetjax.models.parts.video_pruning import keep_count
from tests.harness.models.retained import retained

torch = pytest.importorskip("torch")
modeling = pytest.importorskip("transformers.models.nemotron_h_omni.modeling_nemotron_h_omni")

pytestmark = pytest.mark.live


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 0.7, 0.9, 0.97])
@pytest.mark.parametrize("size", [(1, 2, 3), (2, 4, 4), (7, 3, 5), (16, 8, 6)])
def test_retained_tokens_equal_the_mask_of_transformers(rate, size):
    tubelets, height, width = size
    video = np.random.default_rng(0).normal(size=(tubelets, height * width, 24)).astype(np.float32)
    mask = modeling.compute_retention_mask(
        video_embeds=torch.from_numpy(video.reshape(-1, 24)), thw=size, spatial_merge_size=1, q=rate
    )
    want = np.flatnonzero(mask.numpy())
    assert len(want) == keep_count(tubelets, height * width, rate)
    np.testing.assert_array_equal(retained(video, rate), want)
