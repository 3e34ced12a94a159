"""hetjax bench overlap: how far two modules in two processes compute at the same time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from hetjax.cluster.launch import launch_processes
from hetjax.errors import ClusterError, ConfigError
from hetjax.schedule import Costs, Kind, StageGraph, build_schedule, gpipe, one_f_one_b, simulate
from hetjax.tools.outcome import Json, Outcome, busy
from hetjax.tools.tables import NumberTable

PROCESSES = 2
Pipelined = Literal[gpipe.name, one_f_one_b.name]


def overlap(
    *,
    microbatches: int = 8,
    steps: int = 5,
    warmup: int = 2,
    schedule: Pipelined = one_f_one_b.name,
) -> Outcome:
    """Time a pipelined step against the same actions one at a time, in two processes of one CPU core each.

    One process runs an encoder, the other a language model of about the same cost. Without overlap the ratio
    would be 1; a perfect pipeline of m microbatches over two equal stages takes (m + 1) / 2m.

    Args:
        microbatches: Parts that a batch is split into.
        steps: Steps that are timed of each.
        warmup: Steps before those.
        schedule: Order of the pipelined step.
    """
    for name, value in (("microbatches", microbatches), ("steps", steps), ("warmup", warmup)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; give 1 or more")
    with tempfile.TemporaryDirectory() as folder, busy("timing steps in two processes"):
        settings = [folder, *map(str, (microbatches, steps, warmup)), schedule]
        code = launch_processes(
            ["-m", "hetjax.tools.bench.overlap_worker", *settings], processes=PROCESSES, logs=Path(folder), show=False
        )
        if code:
            logs = "\n".join((Path(folder) / f"process-{i}.log").read_text() for i in range(PROCESSES))
            raise ClusterError(f"a process of the benchmark ended with exit code {code}:\n{logs}")
        found = [json.loads((Path(folder) / f"worker-{i}.json").read_text()) for i in range(PROCESSES)]
    numbers = summary(found, microbatches=microbatches, schedule=schedule)
    return Outcome(numbers=numbers, shown=(_table(numbers),))


def summary(found: Sequence[Mapping[str, Json]], *, microbatches: int, schedule: str) -> dict[str, Json]:
    """Combine what both processes measured into the figures of the benchmark.

    `found` holds, for each process, seconds of its timed steps and its costs by "stage kind".
    A step ends when the slower process has ended it.
    """
    seconds = {
        name: median(max(pair) for pair in zip(*(worker[name] for worker in found), strict=True))
        for name in ("pipelined", "one_at_a_time")
    }
    costs = {name: cost for worker in found for name, cost in worker["costs"].items()}
    of = {
        (stage, kind): costs[f"{stage} {kind.value}"]
        for stage in ("vision", "llm")
        for kind in (Kind.FORWARD, Kind.BACKWARD)
    }
    planned = build_schedule(schedule, StageGraph.chain(["vision", "llm"]), microbatches)
    expected = simulate(planned, Costs(of=of, update=0.0), transfers_occupy=True).makespan
    busy_seconds = microbatches * sum(of.values())
    return {
        "microbatches": microbatches,
        "schedule": schedule,
        "pipelined_seconds": seconds["pipelined"],
        "one_at_a_time_seconds": seconds["one_at_a_time"],
        "ratio": seconds["pipelined"] / seconds["one_at_a_time"],
        "ratio_of_a_perfect_pipeline": (microbatches + 1) / (2 * microbatches),
        "ratio_simulated_from_these_costs": expected / busy_seconds,
        "costs": costs,
    }


def _table(numbers: Mapping[str, Json]) -> NumberTable:
    rows = [
        ("pipelined", f"{1000 * numbers['pipelined_seconds']:.1f} ms"),
        ("the same actions one at a time", f"{1000 * numbers['one_at_a_time_seconds']:.1f} ms"),
        ("ratio", f"{numbers['ratio']:.3f}"),
        ("ratio simulated from the measured costs", f"{numbers['ratio_simulated_from_these_costs']:.3f}"),
        ("ratio of a perfect pipeline", f"{numbers['ratio_of_a_perfect_pipeline']:.3f}"),
        *((f"  {name}", f"{1000 * seconds:.2f} ms") for name, seconds in numbers["costs"].items()),
    ]
    title = f"{numbers['schedule']}, {numbers['microbatches']} microbatches"
    return NumberTable(title=title, texts=("a step of two modules in two processes",), numbers=("",), rows=rows)
