"""hetjax bench layouts: one layout for all modules against a layout for each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median

import jax
import numpy as np
import optax
from rich.progress import Progress

from hetjax.errors import ConfigError
from hetjax.execution.action_timer import ActionTimer
from hetjax.meshes import Layout, Placement
from hetjax.models import DecoderConfig, VisionConfig
from hetjax.schedule import colocated
from hetjax.stages.batch import Batch
from hetjax.state.train_state import TrainState
from hetjax.tools.bench.problem import Problem, enough_devices
from hetjax.tools.bench.traffic import bytes_of_step
from hetjax.tools.outcome import Json, Outcome, busy, stderr
from hetjax.tools.tables import NumberTable
from hetjax.trainer import Trainer
from hetjax.training.display import format_bytes

DEVICES = 8
LLM = Layout(context=4, tensor=2)
LAYOUTS = {
    "homogeneous": Placement({"vision": Layout(context=4, tensor=2), "llm": LLM}),
    "colocated": Placement({"vision": Layout(data=8), "llm": LLM}),
}
LOSS_RTOL = 1e-5


def layouts(
    *, seq_len: int = 1024, images: int = 12, samples: int = 8, microbatches: int = 1, steps: int = 5, warmup: int = 1
) -> Outcome:
    """Time a long fused sequence with a small encoder in two placements on the same 8 devices.

    Homogeneous gives both modules context=4 and tensor=2, as one mesh for all would; colocated gives the encoder
    data=8 beside the same language model. Both train the same model on the same batch, step by step in turns, and
    must give the same loss. Bytes are counted in the compiled programs and the plans of the boundaries.

    Args:
        seq_len: Token positions of a sample's sequence.
        images: Images a sample, of 64 tokens each.
        samples: Samples a batch.
        microbatches: Parts that a batch is split into.
        steps: Steps that are timed.
        warmup: Steps before those.
    """
    if steps < 1 or warmup < 1:
        raise ConfigError(f"steps is {steps} and warmup {warmup}; give 1 or more of each")
    problem = _problem(seq_len, images, samples)
    if images * problem.vision.tokens_per_image > seq_len:
        raise ConfigError(
            f"{images} images of {problem.vision.tokens_per_image} tokens do not fit into {seq_len} token "
            "positions; give a larger seq_len or fewer images"
        )
    devices = enough_devices(DEVICES)[:DEVICES]
    batch = problem.batch()
    with busy("compiling"):
        trainers = {
            name: _trainer(problem, placement, batch, microbatches, devices) for name, placement in LAYOUTS.items()
        }
    states, seconds = _time(trainers, batch, warmup, steps)
    numbers: dict[str, Json] = {"device_kind": devices[0].device_kind, "devices": len(devices), "steps": steps}
    for name, trainer in trainers.items():
        traffic = bytes_of_step(trainer.compiled)
        timer = ActionTimer().start(states[name])
        trainer.step(states[name], batch, observe=timer)
        numbers[name] = {
            "seconds": median(seconds[name]),
            "seconds_by_module": timer.by_module(trainer.schedule.graph),
            "bytes": sum(traffic.values()),
            "bytes_by_module": traffic,
        }
    for what in ("seconds", "bytes"):
        numbers[f"{what}_ratio"] = numbers["homogeneous"][what] / numbers["colocated"][what]
    return Outcome(numbers=numbers, shown=(_table(numbers),))


def _problem(seq_len: int, images: int, samples: int) -> Problem:
    """Return a problem whose encoder multiplies with weights 0.3 times as often per token as its language model."""
    vision = VisionConfig(
        image_size=32, patch_size=4, width=96, layers=4, heads=4, mlp_width=384, projector_width=192, output_width=192
    )
    llm = DecoderConfig(vocab_size=512, width=192, layers=4, heads=6, kv_heads=2, head_dim=32, mlp_width=512)
    return Problem(vision=vision, llm=llm, samples=samples, seq_len=seq_len, images=images)


def _trainer(
    problem: Problem, placement: Placement, batch: Batch, microbatches: int, devices: Sequence[jax.Device]
) -> Trainer:
    trainer = Trainer(
        problem.graph(), placement, optimizer=optax.adamw(1e-3), schedule=colocated.name, microbatches=microbatches,
        max_grad_norm=1.0, devices=devices,
    )  # fmt: skip
    trainer.compile(batch)
    return trainer


def _time(
    trainers: dict[str, Trainer], batch: Batch, warmup: int, steps: int
) -> tuple[dict[str, TrainState], dict[str, list[float]]]:
    """Return (last states, seconds of each step) of each placement.

    They take turns, so that whatever else runs on the machine slows both alike.
    """
    states = {name: trainer.init() for name, trainer in trainers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    with Progress(console=stderr(), disable=not stderr().is_terminal) as progress:
        for index in progress.track(range(warmup + steps), description="timing"):
            losses = []
            for name, trainer in trainers.items():
                start = time.perf_counter()
                states[name], metrics = jax.block_until_ready(trainer.step(states[name], batch))
                if index >= warmup:
                    seconds[name].append(time.perf_counter() - start)
                losses.append(float(metrics["loss"]))
            # Raises where they differ: then it would not be the same work.
            np.testing.assert_allclose(losses[1], losses[0], rtol=LOSS_RTOL, err_msg=f"losses of step {index}")
    return states, seconds


def _table(numbers: Mapping[str, Json]) -> NumberTable:
    rows = []
    for name in LAYOUTS:
        found = numbers[name]
        parts = (format_bytes(found["bytes_by_module"][part]) for part in ("vision", "llm", "boundaries"))
        times = (f"{1000 * each:.1f} ms" for each in (found["seconds"], found["seconds_by_module"]["vision"]))
        rows.append((name, *times, format_bytes(found["bytes"]), *parts))
    of_vision = [numbers[name]["seconds_by_module"]["vision"] for name in LAYOUTS]
    ratios = numbers["seconds_ratio"], of_vision[0] / of_vision[1], numbers["bytes_ratio"]
    rows.append(("ratio", *(f"{ratio:.2f}" for ratio in ratios), "", "", ""))
    return NumberTable(
        title=f"a training step on {numbers['devices']} x {numbers['device_kind']}, median of {numbers['steps']}",
        texts=("placement",),
        numbers=("time", "vision alone", "communicated", "of it vision", "llm", "boundaries"),
        rows=rows,
    )
