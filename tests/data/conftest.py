"""Small datasets on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hetjax.data import DataConfig, SampleLoader
from hetjax.data.chat import ProcessorConfig


@pytest.fixture
def make_dataset(tmp_path):
    """A function that writes `count` samples, the image of sample i of grey level i, those in `truncated` cut short."""

    def make(count: int, *, truncated=(), name="train.jsonl") -> Path:
        lines = []
        for i in range(count):
            path = tmp_path / f"{i}.png"
            noise = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
            noise[0, 0] = i
            Image.fromarray(noise).save(path)
            if i in truncated:
                path.write_bytes(path.read_bytes()[:-100])
            messages = [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": str(i)}]
            lines.append(json.dumps({"messages": messages, "images": [path.name]}) + "\n")
        file = tmp_path / name
        file.write_text("".join(lines))
        return file

    return make


@pytest.fixture
def make_config():
    """A function that gives the settings of a small dataset, for a model of images of one size."""

    def make(train: Path, *, images: int = 1, max_shift: int = 0, **settings) -> DataConfig:
        defaults = {"seq_len": 48, "batch_size": 4, "workers": 2, "max_bad_share": 0.5}
        processor = ProcessorConfig(images=images, max_shift=max_shift)
        return DataConfig(train=str(train), processor=processor, **{**defaults, **settings})

    return make


@pytest.fixture
def note_reads(monkeypatch):
    """A function that gives the list to which every read of a dataset's samples adds its index from then on."""

    def note(file: Path) -> list[int]:
        reads, load = [], SampleLoader.load

        def noted(self, source, index, **turn):
            # Threads of a stream that an earlier test left open may still read a dataset of theirs.
            if source.path == Path(file):
                reads.append(index)
            return load(self, source, index, **turn)

        monkeypatch.setattr(SampleLoader, "load", noted)
        return reads

    return note
