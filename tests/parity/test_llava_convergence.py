"""A LLaVA learns the same on real pictures in any placement: 100 steps in float32, homogeneous, disjoint, colocated.

    python -m pytest -n 0 -s -m exhaustive tests/parity/test_llava_convergence.py

The pictures are the scans of handwritten digits that the demo trains on. The reference system's losses differ by up to
0.057 nats over as many steps (arXiv 2605.27678, with the encoder frozen); here the limit is 1e-4.
"""

import functools

import numpy as np
import optax
import pytest

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.config.build_loader import make_loader
from hetjax.config.model_config import ModelConfig
from hetjax.data import DataConfig
from hetjax.data.chat import ProcessorConfig, parse_messages
from hetjax.data.chat.collate import make_arrays
from hetjax.data.demo_digits import NAMES, QUESTION, load_scans
from hetjax.meshes import Layout, Placement
from hetjax.models import ClipConfig, DecoderConfig
from hetjax.models.components import build_component

STEPS, BATCH = 100, 96
MODEL = {
    "vision": ClipConfig(
        image_size=16, patch_size=4, width=32, layers=3, heads=4, mlp_width=64, projector_width=64, output_width=64
    ),
    "llm": DecoderConfig(vocab_size=288, width=64, layers=4, heads=4, kv_heads=4, head_dim=16, mlp_width=128),
}
TOWER = ("vision.patch", "vision.class_token", "vision.positions", "vision.entry_norm", "vision.layers")
PLACEMENTS = {
    "homogeneous": {"vision": Layout(data=4, tensor=2), "llm": Layout(data=4, tensor=2)},
    "disjoint": {"vision": Layout(devices="0-3", data=2, tensor=2), "llm": Layout(devices="4-7", stage=2, tensor=2)},
    "colocated": {"vision": Layout(data=8), "llm": Layout(data=2, tensor=4)},
}


@functools.cache
def batches():
    """So many batches of questions about scans, in a random order."""
    data = DataConfig(
        train="none.jsonl", seq_len=72, batch_size=BATCH, processor=ProcessorConfig(images=1, square="crop")
    )
    processor = make_loader(data, ModelConfig.of(MODEL)).processor
    scans, digits = load_scans()

    def sample(index):
        picture = {"type": "image", "image": np.repeat(scans[index][..., None], 3, axis=2)}
        asked = {"role": "user", "content": [picture, {"type": "text", "text": QUESTION}]}
        answer = {"role": "assistant", "content": NAMES[digits[index]]}
        return processor.sample(parse_messages([asked, answer], where=f"scan {index}"), training=True)

    order, samples = np.random.default_rng(0).permutation(len(digits)), {}
    made = []
    for step in range(STEPS):
        chosen = order[np.arange(step * BATCH, (step + 1) * BATCH) % len(order)]
        rows = [[samples.setdefault(i, None) or sample(i)] for i in chosen]
        made.append(make_arrays(processor, rows, training=True))
    return made


@functools.cache
def losses(placement: str, frozen: tuple[str, ...]) -> np.ndarray:
    graph = ModuleGraph(
        {name: functools.partial(build_component, config) for name, config in MODEL.items()},
        [Edge("vision.tokens", "llm.image_tokens")],
    )
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 3, STEPS)
    trainer = Trainer(
        graph, Placement(PLACEMENTS[placement]), optimizer=optax.adamw(schedule, b2=0.999), microbatches=4,
        schedule="colocated" if placement == "colocated" else "1f1b", frozen=frozen,
    )  # fmt: skip
    state, found = trainer.init(0), []
    for batch in batches():
        state, metrics = trainer.step(state, batch)
        found.append(float(metrics["loss"]))
    return np.asarray(found)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("frozen", [TOWER, ()], ids=["frozen", "trained"])
def test_losses_of_placements_stay_together(frozen):
    found = {placement: losses(placement, frozen) for placement in PLACEMENTS}
    for placement, curve in found.items():
        print(f"{placement}: loss {curve[0]:.4f} to {curve[-1]:.4f}")
    spread = np.ptp(np.stack(list(found.values())), axis=0)
    print(f"largest difference of the loss: {spread.max():.1e} in step {spread.argmax() + 1}")
    assert found["homogeneous"][-1] < 0.7 * found["homogeneous"][0]
    assert spread.max() <= 1e-4
