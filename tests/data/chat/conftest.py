"""A small processor: patches of 4 pixels, tubelets of 2 frames, clips of a tenth of a second."""

from types import SimpleNamespace

import pytest

from hetjax.data.chat import ChatTemplate, Processor, ProcessorConfig, load_tokenizer
from hetjax.data.media import VideoSampling
from hetjax.models.dynamic_resolution import DynamicResolution
from hetjax.models.patch_rows import PatchRows

RESOLUTION = DynamicResolution(patch_size=4, merge=2, min_patches=4, max_patches=64, video_patches=16)
IMAGES = PatchRows(patch_size=4, merge=2, prefix_tokens=3)
VIDEOS = PatchRows(patch_size=4, merge=2, prefix_tokens=3, frames=2)


def encoders(pruning_rate=0.0):
    """What configs of encoders say of their inputs."""
    vision = SimpleNamespace(tubelet=2, image_rows=IMAGES, video_rows=VIDEOS, video_pruning_rate=pruning_rate)
    return {"vision": vision, "audio": SimpleNamespace()}


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(None)


@pytest.fixture(scope="session")
def make_processor(tokenizer):
    def make(*, template=None, seq_len=400, pruning_rate=0.0, **changes):
        settings = dict(
            image_rows=80, video_rows=120, clips=3, clip_seconds=0.3, resolution=RESOLUTION, frames=VideoSampling(fps=2)
        )
        config = ProcessorConfig(**{**settings, **changes})
        return Processor(
            config, tokenizer, template or ChatTemplate(), seq_len=seq_len, encoders=encoders(pruning_rate)
        )

    return make
