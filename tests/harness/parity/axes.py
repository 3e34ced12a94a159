"""Cases for every axis inside a module: each alone, each pair, and thirty mixtures on 8 and 16 devices."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from flax import nnx

from hetjax import Edge, ModuleGraph
from hetjax.meshes import Layout
from hetjax.models import DecoderConfig, LanguageModel, MoEConfig, VisionConfig, VisionEncoder

SAMPLES, ROWS, VOCABULARY = 32, 32, 64
VISION = VisionConfig(
    image_size=16, patch_size=4, width=16, layers=2, heads=4, mlp_width=32, projector_width=32, output_width=32
)
AUDIO = dataclasses.replace(VISION, image_size=8, layers=4)
LLM = DecoderConfig(vocab_size=VOCABULARY, width=32, layers=4, heads=8, kv_heads=4, head_dim=4, mlp_width=32)
EXPERTS = MoEConfig(count=8, top_k=2, scores="sigmoid", bias_rate=0.01, balance_loss=0.02, shared_width=16)


class Case(NamedTuple):
    """Layouts by module; with "audio" among them the language model has experts and a second encoder."""

    layouts: Mapping[str, Layout]
    schedule: str = "1f1b"
    microbatches: int = 2
    devices: int = 8

    @property
    def kind(self) -> str:
        return "experts" if "audio" in self.layouts else "dense"


@functools.cache
def make_graph(kind: str) -> ModuleGraph:
    """One or two encoders into a language model, with weights."""
    vision = VisionEncoder(VISION, rngs=nnx.Rngs(1))
    if kind == "dense":
        modules = {"vision": vision, "llm": LanguageModel(LLM, rngs=nnx.Rngs(2))}
        return ModuleGraph(modules, [Edge("vision.tokens", "llm.image_tokens")])
    llm = LanguageModel(dataclasses.replace(LLM, experts=EXPERTS), rngs=nnx.Rngs(2))
    modules = {"vision": vision, "audio": VisionEncoder(AUDIO, rngs=nnx.Rngs(3)), "llm": llm}
    return ModuleGraph(modules, [Edge("vision.tokens", "llm.image_tokens"), Edge("audio.tokens", "llm.audio_tokens")])


@functools.cache
def make_batch(kind: str):
    """Encoder tokens spread over the sequence, some of them padding; from some to all positions in the loss."""
    random = np.random.default_rng(5)
    spread = np.argsort(random.random((SAMPLES, ROWS)), axis=1).astype(np.int32)
    image_rows, audio_rows = np.sort(spread[:, :16], axis=1), np.sort(spread[:, 16:20], axis=1)
    image_rows[::5, 8:] = ROWS + 1
    ids = random.integers(0, VOCABULARY, (2, SAMPLES, ROWS)).astype(np.int32)
    weights = (random.random((SAMPLES, ROWS)) < np.linspace(0.05, 1, SAMPLES)[:, None]).astype(np.float32)
    llm = {"tokens": ids[0], "labels": ids[1], "loss_weights": weights, "image_positions": image_rows}
    batch = {"vision": {"images": random.normal(size=(SAMPLES, 1, 16, 16, 3)).astype(np.float32)}, "llm": llm}
    if kind == "experts":
        llm["audio_positions"] = audio_rows
        batch["audio"] = {"images": random.normal(size=(SAMPLES, 1, 8, 8, 3)).astype(np.float32)}
    return batch


AXES = ("data", "fsdp", "expert", "context", "tensor", "stage")


def _case(vision: Layout, llm: Layout, **options) -> Case:
    """With experts where `expert` splits something, and then a second encoder beside the first."""
    if llm.expert == 1:
        return Case({"vision": vision, "llm": llm}, **options)
    return Case({"vision": vision, "audio": Layout(devices="0-1", tensor=2), "llm": llm}, **options)


ALONE = {axis: _case(Layout(devices="0-3", data=4), Layout(devices="4-7", **{axis: 4})) for axis in AXES}

PAIRS = {
    f"{one}-{other}": _case(Layout(data=8), Layout(**{one: 2, other: 4} if i % 2 else {one: 4, other: 2}))
    for i, (one, other) in enumerate(itertools.combinations(AXES, 2))
}


def _three(vision: Layout, audio: Layout, llm: Layout, **options) -> Case:
    return Case({"vision": vision, "audio": audio, "llm": llm}, **options)


L = Layout
MIXED = {
    # The language model in every kind of layout, an encoder over all devices beside it.
    "stage2-context2-tensor2": _case(L(data=8), L(stage=2, context=2, tensor=2)),
    "stage2-context2-tensor2-colocated": _case(L(data=8), L(stage=2, context=2, tensor=2), schedule="colocated"),
    "stage2-context2-tensor2-bubble-fill": _case(L(data=8), L(stage=2, context=2, tensor=2), schedule="bubble_fill"),
    "context4-tensor2": _case(L(data=8), L(context=4, tensor=2)),
    "context4-tensor2-gathered": _case(L(data=8), L(context=4, tensor=2, context_attention="all_gather")),
    "data2-fsdp2-tensor2": _case(L(data=8), L(data=2, fsdp=2, tensor=2)),
    "data2-fsdp2-tensor2-zero1": _case(L(fsdp=8, zero=1), L(data=2, fsdp=2, tensor=2, zero=1)),
    "fsdp2-context2-tensor2": _case(L(data=4, fsdp=2), L(fsdp=2, context=2, tensor=2)),
    "stage2-fsdp2-tensor2-whole-rows": _case(L(data=8), L(stage=2, fsdp=2, tensor=2, sequence_parallel=False)),
    "stage2-data2-context2-chunks2": _case(
        L(data=8), L(stage=2, data=2, context=2, chunks=2), schedule="interleaved_1f1b", microbatches=4
    ),
    "stage2-fsdp2-context2-zero-bubble": _case(L(data=8), L(stage=2, fsdp=2, context=2), schedule="zero_bubble"),
    "stage4-tensor2-zero-bubble": _case(L(data=8), L(stage=4, tensor=2), schedule="zero_bubble", microbatches=4),
    # Encoders with axes and stages of their own.
    "vision-stage2-tensor2-context2": _case(L(stage=2, tensor=2, context=2), L(data=2, context=2, tensor=2)),
    "vision-tensor4-data2": _case(L(tensor=4, data=2), L(stage=2, data=4), schedule="gpipe"),
    "vision-fsdp4-context2": _case(L(fsdp=4, context=2), L(fsdp=8)),
    # Fan-in and fan-out between separate devices.
    "fan-in": _case(L(devices="0-3", data=4), L(devices="4-7", context=2, tensor=2)),
    "fan-out": _case(L(devices="0-1", tensor=2), L(devices="2-7", data=2, stage=3, layers=[1, 2, 1])),
    "fan-in-overlapping": _case(L(devices="0-3", fsdp=4), L(devices="2-7", stage=3, tensor=2)),
    # Experts, and a second encoder.
    "expert4-tensor2-disjoint-encoders": _three(
        L(devices="0-3", tensor=2, data=2), L(devices="4-7", data=4), L(expert=4, tensor=2)
    ),
    "expert2-stage2-tensor2": _three(
        L(devices="0-3", data=4), L(devices="4-7", stage=2, tensor=2), L(stage=2, expert=2, tensor=2)
    ),
    "expert2-context2-fsdp2": _three(L(data=8), L(devices="0-1", data=2), L(expert=2, context=2, fsdp=2)),
    "expert2-data2-tensor2-whole-rows": _three(
        L(devices="0-3", context=2, tensor=2), L(devices="2-5", fsdp=4),
        L(expert=2, data=2, tensor=2, sequence_parallel=False),
    ),
    # On 16 devices.
    "16-stage2-context2-tensor4": _case(L(data=16), L(stage=2, context=2, tensor=4), devices=16),
    "16-context4-tensor2-data2": _case(L(data=8, tensor=2), L(data=2, context=4, tensor=2), devices=16),
    "16-stage4-data2-tensor2": _case(L(data=16), L(stage=4, data=2, tensor=2), devices=16, schedule="bubble_fill"),
    "16-fsdp4-context2-tensor2": _case(L(fsdp=4, tensor=4), L(fsdp=4, context=2, tensor=2), devices=16),
    "16-stage2-data2-fsdp2-tensor2": _case(
        L(data=16), L(stage=2, data=2, fsdp=2, tensor=2, zero=1), devices=16, schedule="zero_bubble"
    ),
    "16-expert4-tensor2-stage2": _three(
        L(devices="0-7", tensor=2, data=4), L(devices="8-15", data=8), L(expert=4, tensor=2, stage=2), devices=16
    ),
    "16-expert4-context2-tensor2": _three(
        L(devices="0-3", tensor=2, data=2), L(devices="4-7", data=4), L(expert=4, context=2, tensor=2), devices=16
    ),
    "16-expert8-fsdp2": _three(
        L(devices="0-7", data=8), L(devices="8-15", fsdp=8), L(expert=8, fsdp=2), devices=16
    ),
}  # fmt: skip
CASES = {**{f"alone-{name}": case for name, case in ALONE.items()}, **PAIRS, **MIXED}

# By default.
QUICK = ("stage2-context2-tensor2-bubble-fill",)

# Beside these in `.ci/run`: the rest of what can go wrong in ways of its own. Chunks and four stages are tried in
# `test_schedules`, experts in stages and with a split sequence in `test_experts` and `test_hybrid`.
SLOW = (
    "fsdp-expert", "vision-stage2-tensor2-context2", "data2-fsdp2-tensor2-zero1", "fan-out",
    "expert4-tensor2-disjoint-encoders", "16-stage2-data2-fsdp2-tensor2",
)  # fmt: skip
