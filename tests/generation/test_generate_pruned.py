"""Answers about a video whose tokens are pruned do not depend on the capacity of its row."""

import dataclasses
import json

import numpy as np
import pytest

from hetjax.config.build import build_trainer
from hetjax.config.build_loader import make_loader
from hetjax.config.run_config import load_config
from hetjax.data import write_shapes
from hetjax.data.chat import make_arrays, parse_messages, prompt_lengths
from hetjax.generation.generator import Generator
from hetjax.meshes import Layout
from tests.harness.paths import ROOT

CONFIG = ROOT / "configs/omni_tiny.yaml"
SMALL = {"llm.pattern": "M*", "vision.layers": 1, "vision.video_pruning_rate": 0.5}


def answer(chats, video_rows: int) -> tuple[np.ndarray, int]:
    """(new tokens, rows taken out of every sequence)."""
    changes = ["--model.changes", json.dumps(SMALL), "--model.without", "[audio]", "--fake_devices", "null"]
    room = ["--data.processor.clips", "0", "--data.processor.video_rows", str(video_rows), "--data.seq_len", "256"]
    config, _ = load_config(["--config", str(CONFIG), *changes, *room, "--param_dtype", "float32"])
    config = dataclasses.replace(config, placement={name: Layout(devices="0") for name in ("vision", "llm")})
    processor = make_loader(config.data, config.model).processor
    trainer = build_trainer(config)
    generator = Generator(trainer, max_new_tokens=6, stop_token=-1)
    samples = [processor.sample(chat) for chat in chats]
    assert samples[0].use.tokens < samples[0].use.before_pruning
    arrays = make_arrays(processor, [[sample] for sample in samples], training=False)
    ids = generator.generate(trainer.init(0), arrays, prompt_lengths(samples))
    return ids, processor.capacity.most.before_pruning - processor.capacity.most.tokens


@pytest.mark.slow
@pytest.mark.quick
def test_a_pruned_video_is_answered_alike_with_any_capacity(tmp_path):
    folder = write_shapes(tmp_path / "shapes", samples=6)
    user = {"role": "user", "content": "<video>Where?"}
    chats = [
        parse_messages([user], files={"video": [str(folder / "media/00002.mp4")]}),
        parse_messages([user], files={"video": [str(folder / "media/00005.mp4")]}),
        parse_messages([{"role": "user", "content": "No film at all."}]),
    ]
    tight, none_out = answer(chats, 56)
    wide, out = answer(chats, 2048)
    assert none_out == 0 and out == 256
    np.testing.assert_array_equal(tight, wide)
    assert len({tuple(row) for row in wide}) > 1
