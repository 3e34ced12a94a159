"""Products of modules of full size compiled for H100s that are not there, against those that they need.

No layer is computed again: what is done beside what is needed is what kernels and layouts add.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

from hetjax import Trainer
from hetjax.config.build import build_graph
from hetjax.config.model_config import ModelConfig
from hetjax.fit.program_facts import program_facts
from hetjax.meshes import Layout, Placement
from hetjax.models import DecoderConfig
from hetjax.models.kernels.attention_scores import Packed
from hetjax.models.presets.nemotron_omni import NANO_OMNI
from tests.harness.absent_gpus import absent_gpus, needs_compiler

pytestmark = [pytest.mark.target, needs_compiler]

# Megatron's 7.1 B and an expert layer of the recipe, with a small vocabulary, whose head does not hide them.
DENSE = DecoderConfig(vocab_size=1024, width=4096, layers=30, heads=32, kv_heads=32, head_dim=128, mlp_width=10880)
EXPERTS = dataclasses.replace(NANO_OMNI["llm"], pattern="E", vocab_size=1024)
VISION, AUDIO = NANO_OMNI["vision"], NANO_OMNI["audio"]
READER = DecoderConfig(vocab_size=64, width=2688, layers=1, heads=1, kv_heads=1, head_dim=64, mlp_width=64)
"""A language model for the tokens of an encoder, whose loss is what a trainer needs."""


class Ratios(NamedTuple):
    """Products done in the forward and in the backward, in units of what the forward needs."""

    forward: float
    backward: float


def ratios(module: str, configs, batch, *, packing=(), **degrees: int) -> Ratios:
    """Compile one module of a model for as many GPUs as its degrees say, and count."""
    devices = absent_gpus()[: math.prod(degrees.values())]
    layout = Layout(devices=f"0-{len(devices) - 1}", **degrees)
    quick = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        trainer = Trainer(
            build_graph(ModelConfig.of(configs)),
            Placement(dict.fromkeys(configs, layout)),
            optimizer=optax.sgd(1e-3),
            compute_dtype="bfloat16",
            devices=devices,
        )
        traced = trainer.trace(batch)
        traced.tasks[f"{module} forward and backward"]()
    finally:
        jax.config.update("jax_disable_most_optimizations", quick)
    facts = {each.name: each for each in program_facts(traced.step, [module], {module: packing})}
    forward, backward = facts[f"{module} forward"], facts[f"{module} backward"]
    assert forward.uncounted == backward.uncounted == 0
    found = Ratios(*(each.flops_done / forward.flops_needed for each in (forward, backward)))
    print(f"{module}: forward {found.forward:.3f}, backward {found.backward:.3f}")  # docs/performance.md shows them
    return found


def array(*shape: int, dtype=jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def text(samples: int, length: int, **more: jax.ShapeDtypeStruct) -> dict[str, jax.ShapeDtypeStruct]:
    weights = array(samples, length, dtype=jnp.float32)
    return {**dict.fromkeys(("tokens", "labels"), array(samples, length)), "loss_weights": weights, **more}


def vision(images: Packed | None, tubelets: Packed | None) -> Ratios:
    """Packed images and the tubelets of videos of the recipe, the largest that it allows."""
    inputs = {}
    for prefix, packed, numbers in (("", images, VISION.patch_dim), ("video_", tubelets, VISION.video_patch_dim)):
        if packed is not None:
            rows = packed.positions
            shapes = array(1, rows, numbers, dtype=jnp.float32), array(1, rows, 4), array(1, rows)
            inputs |= dict(zip((f"{prefix}{port}" for port in ("patches", "places", "segments")), shapes, strict=True))
    packing = tuple(filter(None, (images, tubelets)))
    tokens = sum(packed.positions for packed in packing) // VISION.rows_per_token
    batch = {"vision": inputs, "llm": text(1, tokens, image_positions=array(1, tokens))}
    return ratios("vision", {"vision": VISION, "llm": READER}, batch, packing=packing, data=1)


def test_a_dense_language_model():
    found = ratios("llm", {"llm": DENSE}, {"llm": text(1, 4096)}, data=1)
    assert found.forward <= 1.05 and found.backward <= 2.1


@pytest.mark.slow
def test_an_expert_layer_under_an_even_load():
    found = ratios("llm", {"llm": EXPERTS}, {"llm": text(8, 16384)}, expert=8)
    assert found.forward <= 1.3 and found.backward <= 2.6


@pytest.mark.parametrize(
    ("images", "tubelets", "backward"),
    [
        # Where attention is half of the work, the seven products of its backward show, where four are needed.
        pytest.param(Packed(53248, 13324), Packed(33152, 1036), 2.85, id="the largest images, and tubelets"),
        pytest.param(Packed(53248, 1036), None, 2.25, id="images as small as they get"),
    ],
)
def test_vision_of_packed_images(images, tubelets, backward):
    found = vision(images, tubelets)
    assert found.forward <= 1.05 and found.backward <= backward


def test_audio():
    clips, samples = 16, 30 * 16000
    tokens = clips * 375
    audio = {"waveforms": array(1, clips, samples, dtype=jnp.float32), "lengths": array(1, clips)}
    batch = {"audio": audio, "llm": text(1, tokens, audio_positions=array(1, tokens))}
    found = ratios("audio", {"audio": AUDIO, "llm": READER}, batch, data=1)
    assert found.forward <= 1.05 and found.backward <= 2.1
