"""What loads samples for encoders that are only said to be there."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image

from hetjax.data import DataConfig, SampleLoader, load_tokenizer
from hetjax.data.chat import ChatTemplate, Processor, ProcessorConfig

PER_IMAGE = 2


def make_loader(config: DataConfig, *, encoders=None, image_size=8, per_image=PER_IMAGE) -> SampleLoader:
    """A loader for a model of these encoders; without, of one for images of one size, if it has images."""
    if encoders is None:
        vision = SimpleNamespace(image_size=image_size, tokens_per_image=per_image)
        encoders = {"vision": vision} if config.processor.images else {}
    settings = dict(seq_len=config.seq_len, encoders=encoders)
    return SampleLoader(config, Processor(config.processor, load_tokenizer(None), ChatTemplate(), **settings))


def pixels_of(path: Path, size: int) -> np.ndarray:
    """The pixels of an image file as an encoder of one size takes them."""
    image = PIL.Image.open(path).convert("RGB").resize((size, size), PIL.Image.Resampling.BICUBIC)
    defaults = ProcessorConfig()
    return ((np.asarray(image) / 255 - defaults.pixel_mean) / defaults.pixel_std).astype(np.float32)
