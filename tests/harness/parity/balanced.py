"""The tiny model of images, videos and audio, and one batch twice: media in their samples' rows, and balanced."""

import functools

import numpy as np

from hetjax import Trainer
from hetjax.data.chat import ChatTemplate, Processor, ProcessorConfig, load_tokenizer, make_arrays, parse_messages
from hetjax.data.media import Video, VideoSampling
from hetjax.models.dynamic_resolution import DynamicResolution
from hetjax.stages.batch import shard_rows
from tests.harness.parity.omni import components

ROWS = 8
SHARED = {0: 8, 2: 9, 3: 10, 5: 11}  # the second sample of some rows


@functools.cache
def processor(pruning_rate: float) -> Processor:
    """Patches of the tiny encoders; rows with room for a few media."""
    vision = components(pruning_rate)["vision"]
    resolution = DynamicResolution(
        patch_size=vision.patch_size, merge=vision.merge, min_patches=4, max_patches=64, video_patches=4
    )
    config = ProcessorConfig(
        image_rows=112, video_rows=80, clips=2, clip_seconds=0.4, resolution=resolution, frames=VideoSampling(fps=2),
        packed=2, balance=True,
    )  # fmt: skip
    return Processor(config, load_tokenizer(None), ChatTemplate(), seq_len=384, encoders=components(pruning_rate))


def make_samples(pruning_rate: float) -> list:
    """Samples of which some have most of the media, others none; some share rows."""
    random = np.random.default_rng(3)
    side = components()["vision"].patch_size * components()["vision"].merge
    made = []
    for number in range(ROWS + len(SHARED)):
        content = [{"type": "text", "text": f"number {number}"}]
        for rows, columns in [(3, 2), (1, 2), (2, 2)][: (0, 3, 1, 0, 2, 0, 0, 1, 1, 0, 0, 1)[number]]:
            pixels = random.integers(0, 256, (rows * side, columns * side, 3), dtype=np.uint8)
            content.append({"type": "image", "image": pixels})
        if number in (1, 4, 7, 10):
            frames = random.integers(0, 256, (5, side, side, 3), dtype=np.uint8)
            content.append({"type": "video", "video": Video(frames=frames, times=(0.0, 0.5, 1.0, 1.5, 2.0))})
        for _ in range((2, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0)[number]):
            content.append({"type": "audio", "audio": random.normal(size=5000).astype(np.float32)})
        chat = [{"role": "user", "content": content}, {"role": "assistant", "content": f"answer {number}"}]
        made.append(processor(pruning_rate).sample(parse_messages(chat, where=f"sample {number}"), training=True))
    return made


def batches(pruning_rate: float, trainer: Trainer | None, dtype: type = np.float64) -> dict:
    """The batch as it is without a trainer, and as it is balanced for one."""
    made = processor(pruning_rate)
    if trainer is not None:
        made = made.balancing({stage.module: shard_rows(stage, ROWS, trainer.microbatches) for stage in trainer.stages})
    samples = make_samples(pruning_rate)
    rows = [[samples[row], *([samples[SHARED[row]]] if row in SHARED else [])] for row in range(ROWS)]
    arrays = make_arrays(made, rows, training=True)
    arrays.pop("metrics", None)
    return {
        module: {port: x.astype(dtype) if x.dtype == np.float32 else x for port, x in inputs.items()}
        for module, inputs in arrays.items()
    }
