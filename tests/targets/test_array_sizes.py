"""Small models of real proportions, compiled for GPUs that are not there: no array is larger than it should be.

Rows are much longer than anything is wide, so that an array of [tokens, tokens] stands out by its size, too. No width
is the length of a sequence or of a part of one.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from hetjax.compilation.compile_all import compile_all
from hetjax.compilation.hlo import largest_arrays, read_program
from hetjax.config.build import batch_shapes, build_trainer
from hetjax.config.run_config import load_config
from hetjax.execution.step_programs import Step
from hetjax.fit.array_rule import array_limits
from hetjax.fit.program_facts import program_facts
from hetjax.generation.generator import Generator
from hetjax.trainer import Trainer
from tests.harness.absent_gpus import absent_gpus, needs_compiler
from tests.harness.compile_quickly import quickly

pytestmark = [pytest.mark.target, needs_compiler]

COMMON = """
compute_dtype: bfloat16
microbatches: 2
steps: 1
optimizer: {learning_rate: 1.0e-3}
"""
# Packed images, tubelets and sound into packed rows of a Mamba layer and experts of a width that kernels do not take.
OMNI = """
name: omni
model:
  preset: nemotron_3_nano_omni_300m
  changes: {vision.layers: 2, audio.layers: 2, llm.pattern: ME, llm.expert_width: 480, llm.vocab_size: 5120}
placement:
  vision: {devices: 0-3, fsdp: 2, tensor: 2}
  audio: {devices: 4-7, data: 2, fsdp: 2}
  llm: {expert: 4, tensor: 2}
data:
  train: none
  seq_len: 8192
  batch_size: 16
  processor: {image_rows: 15360, video_rows: 8960, clips: 8, clip_seconds: 30.0, packed: 16}
"""
# Images of one size, of an odd number of patches, into a decoder: a pipeline with backwards in two parts, a ring, heads
# and hidden widths split.
PIPELINE = """
name: pipeline
model:
  vision: {image_size: 880, patch_size: 16, width: 256, layers: 2, heads: 4, mlp_width: 1024, projector_width: 1024,
           output_width: 512}
  llm: {vocab_size: 5120, width: 512, layers: 4, heads: 8, kv_heads: 2, head_dim: 64, mlp_width: 1536}
placement:
  vision: {data: 8}
  llm: {stage: 2, context: 2, tensor: 2}
schedule: zero_bubble
data: {train: none, seq_len: 8192, batch_size: 16, processor: {images: 2}}
"""
# Packed text in a sequence that is gathered, weights split.
PACKED = """
name: packed
model:
  llm: {vocab_size: 5120, width: 512, layers: 2, heads: 8, kv_heads: 2, head_dim: 64, mlp_width: 1536}
placement:
  llm: {data: 2, fsdp: 2, context: 2, context_attention: all_gather}
data:
  train: none
  seq_len: 8192
  batch_size: 16
  processor: {packed: 16}
"""


@pytest.fixture(autouse=True)
def compiled_quickly():
    """Which arrays there are does not depend on how well the kernels are optimized."""
    with quickly():
        yield


def compiled(tmp_path, text: str, *, updates: bool = True) -> tuple[Trainer, Step]:
    path = tmp_path / "run.yaml"
    path.write_text(COMMON + text)
    config, _ = load_config(["--config", str(path)])
    trainer = build_trainer(config, devices=absent_gpus())
    traced = trainer.trace(batch_shapes(config.data, config.model))
    ends = ("update", "norm", "to every process")
    tasks = {name: task for name, task in traced.tasks.items() if updates or not name.endswith(ends)}
    compile_all(tasks, progress=False)
    return trainer, traced.step


def oversized(step: Step) -> dict:
    return {facts.name: facts.oversized for facts in program_facts(step, step.stages) if facts.oversized}


def limits_of(step: Step, stage: str):
    return array_limits(step.stages[stage], step.programs[stage].inputs)


def test_packed_media_and_experts(tmp_path):
    _, step = compiled(tmp_path, OMNI, updates=False)
    assert oversized(step) == {}
    # Scores of four heads of one row in bfloat16 would be found by their size alone, of whatever dims.
    for name, length in (("vision", 15360), ("llm", 8192)):
        limits = limits_of(step, name)
        assert length in limits.sequence_lengths
        assert 2 * 4 * length**2 > 4 * max(limits.activation_bytes, limits.weight_bytes)
    # Two products forward and four backward, and in further rounds as many, the first of the forward once more.
    texts = {name: step.programs["llm"].programs[name].text for name in ("forward", "backward")}
    kernels = {name: len(re.findall(r'custom_call_target="mosaic_gpu', text)) for name, text in texts.items()}
    assert kernels == {"forward": 2 + 2, "backward": 4 + 5}
    # Buffers hold what usually arrives: two rows a device, four experts a token, 768 wide.
    for text in texts.values():
        assert "ragged-all-to-all" in text
        arrays = [each for each in largest_arrays(read_program(text)) if "experts" in each.layer]
        assert 1 <= max(each.shape.size for each in arrays) / (2 * 8192 * 4 * 768) <= 1.6


def test_a_ring_a_pipeline_and_backwards_in_two_parts(tmp_path):
    _, step = compiled(tmp_path, PIPELINE)
    assert {"backward_input", "backward_weight"} <= set(step.programs["llm.0"].programs)
    assert oversized(step) == {}
    # Whole, of a device, between attentions, and the parts of each.
    assert limits_of(step, "llm.0").sequence_lengths == {8192, 4096, 2048, 1024}


def test_packed_text_and_generation(tmp_path):
    trainer, step = compiled(tmp_path, PACKED)
    assert oversized(step) == {}
    generator = Generator(trainer, max_new_tokens=64, stop_token=1)
    # A row a device in one piece: as many tokens as of two halves in training.
    tasks = generator.trace({"llm": {"tokens": jax.ShapeDtypeStruct((4, 8192), jnp.int32)}})
    for task in ("llm prefill", "llm decode step"):
        program = tasks[task]().text
        assert limits_of(step, "llm").broken_by(largest_arrays(read_program(program))) == []
