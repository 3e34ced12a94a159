"""One of the two processes of `hetjax bench overlap`; run by it as a module.

Process 0 runs an encoder and process 1 a language model of about the same cost. Both time whole steps in
turns: pipelined, and with the same actions one at a time, where each process waits for its own action and
then for the other process before the next action of the schedule begins.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hetjax.cluster import key_value_store as store
from hetjax.cluster.connect import connect, disconnect
from hetjax.cluster.environment import find_environment
from hetjax.compilation.compiled_program import Program
from hetjax.execution.action_timer import ActionTimer
from hetjax.meshes import Layout, Placement
from hetjax.models import DecoderConfig, VisionConfig
from hetjax.schedule.actions import Action
from hetjax.tools.bench.problem import Problem
from hetjax.trainer import Trainer

PEER_TIMEOUT = 60.0


def problem(microbatches: int) -> Problem:
    """Return a problem with as many tokens and layers of the same width in both modules.

    SwiGLU has three matrices to GELU's two, so its MLP is two thirds as wide.
    """
    return Problem(
        vision=VisionConfig(
            image_size=32, patch_size=4, width=256, layers=4, heads=4, mlp_width=1056, projector_width=256,
            output_width=256,
        ),
        llm=DecoderConfig(vocab_size=64, width=256, layers=4, heads=4, kv_heads=4, head_dim=64, mlp_width=688),
        samples=4 * microbatches,
        seq_len=64,
    )  # fmt: skip


class Worker:
    """A trainer of which this process runs one module."""

    def __init__(self, microbatches: int, schedule: str):
        made = problem(microbatches)
        self.batch = made.batch()
        self.trainer = Trainer(
            made.graph(),
            Placement({"vision": Layout(devices="0"), "llm": Layout(devices="1")}),
            optimizer=optax.adamw(1e-3),
            schedule=schedule,
            microbatches=microbatches,
            max_grad_norm=1.0,
        )
        self._meet = _barrier()
        self._meet()
        self.trainer.compile(self.batch)
        self._meet()
        self.state = self.trainer.init()
        self._round = 0

    def step(self, **hooks: Callable[..., None]) -> float:
        """Time a step that both processes start together; returns seconds."""
        jax.block_until_ready(self.state)
        self._meet()
        start = time.perf_counter()
        self.state, metrics = self.trainer.step(self.state, self.batch, **hooks)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - start

    def pipelined(self) -> float:
        """Time a step as it is trained; returns seconds."""
        return self.step()

    def one_at_a_time(self) -> float:
        """Time the same actions, each of which begins when the one before it has ended, whichever process runs it."""
        self._round += 1
        places: list[int] = []

        def turn(place: int, action: Action) -> None:
            before = place - 1
            if before >= 0 and before not in places:
                store.get(f"overlap/{self._round}/{before}", PEER_TIMEOUT)
            places.append(place)

        def settle(action: Action, result: object) -> None:
            jax.block_until_ready(result)
            store.put(f"overlap/{self._round}/{places[-1]}", "done")

        return self.step(announce=turn, observe=settle)

    def costs(self) -> dict[str, float]:
        """Return the median seconds of this process's actions by "stage kind"."""
        timer = ActionTimer().start(self.state)
        self.step(observe=timer)
        return {f"{name} {kind.value}": seconds for (name, kind), seconds in timer.costs().of.items()}


def _barrier() -> Callable[[], None]:
    """Return a function that returns when all processes have called it."""
    mesh = Mesh(np.array(jax.devices()), ("process",))
    rows = NamedSharding(mesh, PartitionSpec("process"))
    ones = jax.make_array_from_callback((mesh.size,), rows, lambda index: np.ones(1, np.float32))
    whole = NamedSharding(mesh, PartitionSpec())
    meet = Program("barrier", lambda x: x.sum(), mesh, ones, out_shardings=whole).compile()
    return lambda: jax.block_until_ready(meet(ones)) and None


def main(folder: Path, microbatches: int, steps: int, warmup: int, schedule: str) -> None:
    """Write the seconds of every timed step to worker-<process>.json in the folder."""
    environment = find_environment(os.environ)
    if hasattr(os, "sched_setaffinity"):
        # One core each; before JAX starts its threads.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[environment.process % len(cores)]})
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    connect(environment, peer_timeout=PEER_TIMEOUT)
    worker = Worker(microbatches, schedule)
    seconds: dict[str, list[float]] = {"pipelined": [], "one_at_a_time": []}
    for index in range(warmup + steps):
        for name in seconds:
            taken = getattr(worker, name)()
            if index >= warmup:
                seconds[name].append(taken)
    (folder / f"worker-{environment.process}.json").write_text(json.dumps({**seconds, "costs": worker.costs()}))
    disconnect()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5])
