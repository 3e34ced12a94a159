"""Layouts that Megatron's scripts and tests run (arXiv 2605.27678, A7 and A8; Megatron-LM), and tiny models for them.

A layout is written "tensor/stages/data", those of a model "LLM|vision" or "LLM|vision|audio".
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax import Edge, ModuleGraph
from hetjax.meshes import Layout
from hetjax.models import ClipConfig, ClipEncoder, DecoderConfig, LanguageModel, ParakeetEncoder
from hetjax.models.parts.audio_clips import clip_token_positions, tokens_of_clip
from hetjax.models.parts.linear import Linear
from hetjax.models.parts.loss import cross_entropy
from hetjax.models.presets import find_preset
from hetjax.models.stages import cut_stage
from tests.harness.compile_quickly import quickly

ROWS, VOCABULARY, CLIP_SAMPLES = 24, 40, 8000
VISION = ClipConfig(
    image_size=8, patch_size=2, width=16, layers=4, heads=4, mlp_width=32, projector_width=32, output_width=32
)
LLM = DecoderConfig(vocab_size=VOCABULARY, width=32, layers=4, heads=4, kv_heads=4, head_dim=8, mlp_width=48)
AUDIO = dataclasses.replace(find_preset("nemotron_3_nano_omni_tiny")["audio"], layers=2, output_width=32)
TOWER = ("vision.patch", "vision.class_token", "vision.positions", "vision.entry_norm", "vision.layers")
"""What is frozen of an encoder whose projector trains."""

FROZEN = (
    "4/1/1|4/1/1", "2/1/2|2/1/2", "2/2/1|4/1/1", "1/1/4|1/1/4", "1/4/1|4/1/1", "1/4/1|1/1/4", "1/2/2|2/1/2",
    "4/1/1|1/1/4", "2/2/1|2/1/2", "2/1/2|1/1/4",
)  # fmt: skip
TRAINED = (
    "4/1/1|4/1/1", "2/1/2|2/1/2", "2/2/1|4/1/1", "2/2/1|2/1/2", "1/4/1|4/1/1", "1/4/1|2/1/2", "1/2/2|2/1/2",
    "4/1/1|2/1/2",
)  # fmt: skip
UNEVEN = ("1/2/1|2/1/3", "2/1/1|2/1/3")
AUDIO_SETS = (
    "4/1/1|2/1/1|2/1/1", "4/1/1|1/1/2|1/1/2", "2/1/2|1/1/2|1/1/2", "2/2/1|2/1/1|2/1/1", "1/4/1|2/1/1|2/1/1",
    "1/4/1|1/1/2|1/1/2", "1/2/2|1/1/2|1/1/2",
    "2/1/1|4/1/1|2/1/1", "2/1/1|2/1/1|4/1/1", "2/1/1|1/1/3|1/1/3", "2/1/1|1/1/4|2/1/1", "2/1/1|1/1/2|1/1/4",
    "1/2/1|4/1/1|2/1/1", "1/2/1|2/1/1|4/1/1", "1/2/1|1/1/3|1/1/3", "1/2/1|1/1/4|2/1/1",
)  # fmt: skip


class Case(NamedTuple):
    """A model in a placement, and how it is trained."""

    layouts: Mapping[str, Layout]
    schedule: str = "1f1b"
    microbatches: int | Mapping[str, int] = 4
    samples: int = 32
    frozen: tuple[str, ...] = ()
    offload: tuple[str, ...] = ()
    even: bool = False

    @property
    def kind(self) -> str:
        """Which model it is."""
        return "generator" if "generator" in self.layouts else "audio" if "audio" in self.layouts else "vision"


def _layout(text: str, times: int = 1) -> Layout:
    tensor, stage, data = map(int, text.split("/"))
    return Layout(tensor=tensor, stage=stage, data=data * times)


def _apart(text: str, **options) -> Case:
    """The modules on devices of their own, one after another, the language model first."""
    layouts, first = {}, 0
    for name, each in zip(("llm", "vision", "audio"), text.split("|"), strict=False):
        count = _layout(each).device_count
        layouts[name] = dataclasses.replace(_layout(each), devices=f"{first}-{first + count - 1}")
        first += count
    return Case(layouts, **options)


def _together(text: str, **options) -> Case:
    """Both modules on the same 8 devices, each with twice the data degree."""
    layouts = {name: _layout(each, times=2) for name, each in zip(("llm", "vision"), text.split("|"), strict=True)}
    return Case(layouts, schedule="colocated", **options)


def _vision_and_llm(vision: Layout, llm: Layout, **options) -> Case:
    return Case({"llm": llm, "vision": vision}, **options)


L = Layout
FAN_IN, FAN_OUT = (L(tensor=2, data=4), L(tensor=4, data=2)), (L(tensor=4, data=2), L(tensor=2, data=4))
WINDOW = {"microbatches": {"llm": 4, "vision": 1}, "offload": ("vision",)}
"""The encoder encodes all microbatches at once, and rests in the memory of the host in between."""
CASES: dict[str, Case] = {
    **{f"frozen, apart, {text}": _apart(text, frozen=TOWER) for text in FROZEN},
    **{f"trained, apart, {text}": _apart(text) for text in TRAINED},
    **{f"frozen, together, {text}": _together(text, frozen=TOWER) for text in FROZEN},
    **{f"trained, together, {text}": _together(text) for text in TRAINED},
    **{f"frozen, window and offload, {text}": _together(text, frozen=TOWER, **WINDOW) for text in FROZEN},
    **{f"trained, window and offload, {text}": _together(text, **WINDOW) for text in TRAINED},
    **{f"uneven, {text}": _apart(text, samples=24, microbatches=2) for text in UNEVEN},
    **{f"audio, {text}": _apart(text, samples=24, microbatches=2) for text in AUDIO_SETS},
    **{
        f"colocated, {name}, {'even' if even else 'uneven'} masks, {count}": _vision_and_llm(
            *layouts, schedule="colocated", microbatches=count, even=even
        )
        for name, layouts in (("fan-in", FAN_IN), ("fan-out", FAN_OUT))
        for even in (True, False)
        for count in (1, 4)
    },
    "colocated, TP2 DP4 to TP2 PP2 DP2": _vision_and_llm(L(tensor=2, data=4), L(tensor=2, stage=2, data=2)),
    "colocated, TP4 DP2 to PP2 DP4": _vision_and_llm(L(tensor=4, data=2), L(stage=2, data=4)),
    "colocated, DP2 to CP2": _vision_and_llm(L(devices="0-1", data=2), L(devices="0-1", context=2)),
    "colocated, DP2 to PP2": _vision_and_llm(L(devices="0-1", data=2), L(devices="0-1", stage=2)),
    "apart, DP4 to TP2 PP2": _vision_and_llm(L(devices="0-3", data=4), L(devices="4-7", tensor=2, stage=2)),
    "apart, DP4 to CP2 PP2": _vision_and_llm(L(devices="0-3", data=4), L(devices="4-7", context=2, stage=2)),
    "a generator behind": Case(
        {
            "vision": L(devices="0", tensor=1), "audio": L(devices="1"),
            "llm": L(devices="2-5", tensor=2, stage=2), "generator": L(devices="6-7", tensor=2),
        },
        samples=24, microbatches=2,
    ),
    "two stages beside one": Case(
        {"vision": L(devices="0-1", stage=2), "audio": L(devices="2-3", tensor=2), "llm": L(devices="4-7", tensor=4)},
        samples=24, microbatches=2,
    ),
}  # fmt: skip


class Features(LanguageModel):
    """A language model without a head, whose features another module takes."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        del self.head

    @property
    def input_ports(self) -> tuple[str, ...]:
        return tuple(port for port in super().input_ports if port not in ("labels", "loss_weights"))

    def stage(self, index: int, count: int, layers=None):
        return cut_stage(self, index, count, layers, first=("embedding",), last=("norm",))

    def _training_outputs(self, x, balance, labels, loss_weights, order) -> dict[str, Array]:
        return {"features": self.norm(x)} if self.cut.last else {"hidden": x}


class TokenGenerator(nnx.Module):
    """A map of a language model's features, and the loss of what it predicts from them."""

    def __init__(self, width: int, vocabulary: int, *, rngs: nnx.Rngs):
        self.map = Linear({"embed": width}, {"mlp": width}, rngs=rngs)
        self.head = Linear({"embed": width}, {"vocab": vocabulary}, rngs=rngs)

    def __call__(
        self, features: Float[Array, "B S D"], labels: Int[Array, "B S"], loss_weights: Float[Array, "B S"]
    ) -> dict[str, Array]:
        made = features + nnx.silu(self.map(features))
        return {"loss": cross_entropy(made, self.head.kernel[...], labels, loss_weights, vocab_dim=1)}


@functools.cache
@quickly()
def make_graph(kind: str) -> ModuleGraph:
    """The model with weights."""
    modules: dict[str, nnx.Module] = {"vision": ClipEncoder(VISION, rngs=nnx.Rngs(1))}
    edges = [Edge("vision.tokens", "llm.image_tokens")]
    if kind != "vision":
        modules["audio"] = ParakeetEncoder(AUDIO, rngs=nnx.Rngs(3))
        edges.append(Edge("audio.tokens", "llm.audio_tokens"))
    modules["llm"] = (Features if kind == "generator" else LanguageModel)(LLM, rngs=nnx.Rngs(2))
    if kind == "generator":
        modules["generator"] = TokenGenerator(LLM.width, VOCABULARY, rngs=nnx.Rngs(4))
        edges.append(Edge("llm.features", "generator.features"))
    return ModuleGraph(modules, edges)


@functools.cache
def make_batch(kind: str, samples: int, even: bool = False):
    """A picture and a clip a sample; from none to all positions in the loss, or all of every sample."""
    random = np.random.default_rng(5)
    ids = random.integers(0, VOCABULARY, (2, samples, ROWS)).astype(np.int32)
    shares = np.linspace(0, 1, samples)[:, None]
    weights = (random.random((samples, ROWS)) < (1.1 if even else shares)).astype(np.float32)
    spread = np.argsort(random.random((samples, ROWS)), axis=1).astype(np.int32)
    targets = {"labels": ids[1], "loss_weights": weights}
    llm = {"tokens": ids[0], "image_positions": np.sort(spread[:, :16], axis=1)}
    batch = {"vision": {"images": random.normal(size=(samples, 1, 8, 8, 3)).astype(np.float32)}, "llm": llm}
    if kind != "vision":
        lengths = np.full((samples, 1), CLIP_SAMPLES, np.int32)
        waveforms = random.normal(size=(samples, 1, CLIP_SAMPLES))  # float64, as its spectrum is then
        batch["audio"] = {"waveforms": waveforms, "lengths": lengths}
        real, _ = clip_token_positions(lengths[0], CLIP_SAMPLES)
        places = np.full((samples, tokens_of_clip(CLIP_SAMPLES)), ROWS, np.int32)
        places[:, real] = np.sort(spread[:, 16 : 16 + len(real)], axis=1)
        llm["audio_positions"] = places
    batch["generator" if kind == "generator" else "llm"] = {
        **batch.get("generator" if kind == "generator" else "llm", {}),
        **targets,
    }
    return batch
