"""hetjax bench step: how fast a run's training step is on this machine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from statistics import median

import jax
from rich.progress import track

from hetjax.config.build import assumed_packings, batch_shapes, build_trainer, use_devices
from hetjax.config.run_config import TrainConfig
from hetjax.errors import ConfigError
from hetjax.execution.action_timer import ActionTimer
from hetjax.execution.flops import Packings, model_flops
from hetjax.fit.program_facts import step_flops
from hetjax.meshes import find_hardware
from hetjax.stages.batch import Batch
from hetjax.state.train_state import TrainState
from hetjax.tools.outcome import Json, Outcome, busy, stderr
from hetjax.tools.random_batch import random_batch
from hetjax.tools.tables import NumberTable
from hetjax.trainer import Trainer
from hetjax.training.display import format_bytes
from hetjax.training.memory import devices_used, memory_held


def step(*, config: TrainConfig, timed_steps: int = 10, warmup: int = 3) -> Outcome:
    """Time a run's training step on random data: seconds, tokens/s, FLOP/s, memory, and the time of each module.

    Args:
        timed_steps: Steps that are timed.
        warmup: Steps before those.
    """
    if timed_steps < 1 or warmup < 1:
        raise ConfigError(f"timed_steps is {timed_steps} and warmup {warmup}; give 1 or more of each")
    use_devices(config.fake_devices, (config.param_dtype, config.compute_dtype))
    trainer = build_trainer(config)
    packings = assumed_packings(config.data, config.model)
    shapes, vocab_size = batch_shapes(config.data, config.model), config.model.components["llm"].vocab_size
    batch = random_batch(shapes, vocab_size=vocab_size, packings=packings)
    with busy("compiling"):
        trainer.compile(batch)
    state, seconds = _time(trainer, trainer.init(config.seed), batch, warmup, timed_steps)
    numbers = {"name": config.name, **_speed(trainer, config, packings, seconds)}
    numbers["peak_bytes_per_device"] = _peak_memory(trainer)
    timer = ActionTimer().start(state)
    trainer.step(state, batch, observe=timer)
    numbers["seconds_by_module"] = timer.by_module(trainer.schedule.graph)
    return Outcome(numbers=numbers, shown=(_table(numbers),))


def _time(trainer: Trainer, state: TrainState, batch: Batch, warmup: int, timed: int) -> tuple[TrainState, list[float]]:
    """Return seconds from the end of each step to that of the next, dispatched one step ahead as in training."""
    for _ in range(warmup):
        state, ahead = trainer.step(state, batch)
    jax.block_until_ready((state, ahead))
    ends = [time.perf_counter()]
    state, ahead = trainer.step(state, batch)
    for _ in track(range(timed - 1), "timing", console=stderr(), disable=not stderr().is_terminal):
        done = ahead
        state, ahead = trainer.step(state, batch)
        jax.block_until_ready(done)
        ends.append(time.perf_counter())
    jax.block_until_ready((state, ahead))
    ends.append(time.perf_counter())
    return state, [end - start for start, end in itertools.pairwise(ends)]


def _speed(trainer: Trainer, config: TrainConfig, packings: Packings, seconds: list[float]) -> dict[str, Json]:
    devices = devices_used(trainer)
    tokens, flops = config.data.batch_size * config.data.seq_len, model_flops(trainer.compiled, packings)
    typical = median(seconds)
    per_device = flops / typical / len(devices)
    return {
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "steps": len(seconds),
        "seconds": typical,
        "seconds_min": min(seconds),
        "tokens": tokens,
        "tokens_per_second": tokens / typical,
        "model_flops": flops,
        "compiled_flops": step_flops(trainer.compiled, packings),
        "tflops_per_device": per_device / 1e12,
        "share_of_peak": share_of_peak(per_device, devices[0].device_kind),
    }


def share_of_peak(flops_per_second: float, device_kind: str) -> float | None:
    """Return the share of a device's dense bfloat16 peak, 0 to 1; None where the peak is not known."""
    hardware = find_hardware(device_kind)
    return flops_per_second / hardware.bfloat16_flops if hardware else None


def _peak_memory(trainer: Trainer) -> dict[str, int] | None:
    """Return the most bytes in use on each device so far, or None where the backend does not count (a CPU)."""
    return {str(device): stats["peak_bytes_in_use"] for device, stats in memory_held(trainer).items()} or None


def _table(numbers: Mapping[str, Json]) -> NumberTable:
    peak, memory = numbers["share_of_peak"], numbers["peak_bytes_per_device"]
    rows = [
        ("median", f"{1000 * numbers['seconds']:.1f} ms"),
        ("fastest", f"{1000 * numbers['seconds_min']:.1f} ms"),
        ("tokens/s", f"{numbers['tokens_per_second']:,.0f}"),
        ("model FLOPs", f"{numbers['model_flops']:.4g}"),
        ("FLOPs of the programs", f"{numbers['compiled_flops']:.4g}"),
        ("TFLOP/s per device", f"{numbers['tflops_per_device']:.4g}"),
        ("share of bfloat16 peak", "unknown" if peak is None else f"{peak:.1%}"),
        ("peak memory per device", "unknown" if memory is None else format_bytes(max(memory.values()))),
    ]
    for module, seconds in numbers["seconds_by_module"].items():
        rows.append((f"{module}, timed alone", f"{1000 * seconds:.1f} ms"))
    return NumberTable(
        title=f"{numbers['name']}: {numbers['devices']} x {numbers['device_kind']}",
        texts=("a training step",),
        numbers=(f"over {numbers['steps']} steps",),
        rows=rows,
    )
