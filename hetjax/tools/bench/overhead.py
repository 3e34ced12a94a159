"""hetjax bench overhead: the time of a step against that of the same step as one jitted function."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Literal

import jax
import numpy as np
import optax
from rich.progress import Progress

from hetjax.errors import ConfigError
from hetjax.meshes import Layout, Placement
from hetjax.models import DecoderConfig, VisionConfig
from hetjax.schedule import colocated
from hetjax.tools.bench.plain_step import PlainStep
from hetjax.tools.bench.problem import Problem, enough_devices
from hetjax.tools.outcome import Json, Outcome, stderr
from hetjax.tools.tables import NumberTable
from hetjax.trainer import Trainer

MAX_GRAD_NORM = 1.0
LOSS_RTOL = 1e-5


PROBLEMS = {
    # A step takes some hundred milliseconds on two CPU cores, so that what is timed is the model.
    "small": Problem(
        vision=VisionConfig(
            image_size=32, patch_size=4, width=128, layers=2, heads=4, mlp_width=512, projector_width=256,
            output_width=192,
        ),
        llm=DecoderConfig(vocab_size=512, width=192, layers=4, heads=6, kv_heads=2, head_dim=32, mlp_width=512),
        samples=32,
        seq_len=80,
    ),
    # Next to no arithmetic: the time is that of the dispatches.
    "tiny": Problem(
        vision=VisionConfig(
            image_size=8, patch_size=4, width=16, layers=1, heads=2, mlp_width=32, projector_width=32, output_width=16
        ),
        llm=DecoderConfig(vocab_size=32, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=32),
        samples=32,
        seq_len=8,
    ),
}  # fmt: skip


def overhead(
    *,
    devices: list[int] = [1, 8],  # noqa: B006, never changed; shown in --help
    microbatches: list[int] = [1, 4],  # noqa: B006
    steps: int = 10,
    warmup: int = 2,
    size: Literal["small", "tiny"] = "small",
) -> Outcome:
    """Time a training step against the same step as one jitted function, in turns and in one process.

    Both train an encoder and a language model, data-parallel over the devices, and must give the same
    loss in every step. A ratio above 1 is what programs, boundaries and schedule cost.

    Args:
        devices: Numbers of devices, a case each, e.g. [1,8]. CPU devices are made up where the machine has fewer.
        microbatches: Numbers of microbatches, a case each, e.g. [1,4].
        steps: Steps that are timed in each case.
        warmup: Steps before those.
        size: small has some hundred milliseconds of arithmetic a step on two cores; tiny shows the dispatch alone.
    """
    problem = PROBLEMS[size]
    _check(problem, devices, microbatches, steps, warmup)
    found = enough_devices(max(devices))
    cases = []
    with Progress(console=stderr(), disable=not stderr().is_terminal) as progress:
        for count in devices:
            for parts in microbatches:
                task = progress.add_task(f"{count} devices, {parts} microbatches", total=warmup + steps)
                case = _Case(problem, found[:count], parts)
                times = case.time(warmup, steps, tick=lambda task=task: progress.advance(task))
                cases.append({"devices": count, "microbatches": parts, **times, "parameters": case.parameters})
    numbers = {"size": size, "device_kind": found[0].device_kind, "cases": cases}
    return Outcome(numbers=numbers, shown=(_table(numbers),))


def _check(problem: Problem, devices: list[int], microbatches: list[int], steps: int, warmup: int) -> None:
    if steps < 1 or warmup < 1:
        raise ConfigError(f"steps is {steps} and warmup {warmup}; give 1 or more of each")
    if not devices or not microbatches or min(*devices, *microbatches) < 1:
        raise ConfigError(f"devices is {devices} and microbatches {microbatches}; give numbers of 1 or more")
    for count in devices:
        for parts in microbatches:
            if problem.samples % (count * parts):
                raise ConfigError(
                    f"a batch of {problem.samples} samples is not divisible by {count} devices * {parts} microbatches; "
                    f"choose numbers whose product divides {problem.samples}"
                )


class _Case:
    """Both steps, compiled, from the same weights."""

    def __init__(self, problem: Problem, devices: Sequence[jax.Device], microbatches: int):
        graph, optimizer = problem.graph(), optax.adamw(1e-3)
        layout = Layout(data=len(devices))
        self.batch = problem.batch()
        self.trainer = Trainer(
            graph,
            Placement(dict.fromkeys(graph.modules, layout)),
            optimizer=optimizer,
            schedule=colocated.name,
            microbatches=microbatches,
            max_grad_norm=MAX_GRAD_NORM,
            devices=devices,
        )
        self.trainer.compile(self.batch)
        self.state = self.trainer.init()
        self.plain = PlainStep(
            graph,
            self.trainer.stages[0].mesh,
            layout,
            optimizer=optimizer,
            max_grad_norm=MAX_GRAD_NORM,
            microbatches=microbatches,
        )
        self.plain_state = self.plain.init(self.trainer.weights(self.state))
        self.parameters = sum(x.size for x in jax.tree.leaves(self.plain_state[0]))

    def time(self, warmup: int, steps: int, *, tick: Callable[[], None]) -> dict[str, Json]:
        """Time both, step by step in turns so that whatever else runs on the machine slows both alike."""
        seconds: dict[str, list[float]] = {"plain": [], "hetjax": []}
        for index in range(warmup + steps):
            losses = []
            for name, run in (("plain", self._run_plain), ("hetjax", self._run_hetjax)):
                start = time.perf_counter()
                losses.append(run())
                if index >= warmup:
                    seconds[name].append(time.perf_counter() - start)
            # Raises where they differ: then it would not be the same work.
            np.testing.assert_allclose(losses[1], losses[0], rtol=LOSS_RTOL, err_msg=f"losses of step {index}")
            tick()
        plain, hetjax = median(seconds["plain"]), median(seconds["hetjax"])
        return {"plain_seconds": plain, "hetjax_seconds": hetjax, "ratio": hetjax / plain, "steps": steps}

    def _run_plain(self) -> jax.Array:
        *self.plain_state, loss = jax.block_until_ready(self.plain.step(*self.plain_state, self.batch))
        return loss

    def _run_hetjax(self) -> jax.Array:
        self.state, metrics = jax.block_until_ready(self.trainer.step(self.state, self.batch))
        return metrics["loss"]


def _table(numbers: Mapping[str, Json]) -> NumberTable:
    rows = [
        (
            str(case["devices"]),
            str(case["microbatches"]),
            *(f"{1000 * case[name]:.1f} ms" for name in ("plain_seconds", "hetjax_seconds")),
            f"{case['ratio']:.3f}",
        )
        for case in numbers["cases"]
    ]
    return NumberTable(
        title=f"a training step of {numbers['cases'][0]['parameters']:,} parameters on {numbers['device_kind']}",
        numbers=("devices", "microbatches", "one jitted function", "hetjax", "ratio"),
        rows=rows,
    )
