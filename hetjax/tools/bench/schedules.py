"""hetjax bench schedules: how long each schedule leaves devices idle, on paper."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

from rich.table import Table

from hetjax.errors import ConfigError
from hetjax.schedule import Costs, Kind, Schedule, StageEdge, StageGraph, StageNode, build_schedule, check, simulate
from hetjax.schedule.actions import ENDS_MICROBATCH
from hetjax.tools.given_costs import KindCosts
from hetjax.tools.outcome import Outcome, busy

ENCODED = ("1f1b", "colocated", "bubble_fill")


def schedules(
    *,
    stages: list[int] = [2, 4, 8],  # noqa: B006, never changed; shown in --help
    microbatches: list[int] = [4, 8, 16],  # noqa: B006
    chunks: int = 2,
    encoder: float = 0.5,
    costs: KindCosts = KindCosts(),
) -> Outcome:
    """Simulate every schedule over numbers of stages and microbatches: nothing is run.

    One table has a language model alone, on a mesh for each of its equal stages. For interleaved_1f1b, each mesh
    holds several stages that are as much shorter. The other has an encoder on the devices of all stages
    too, a piece of each microbatch on each, which devices run independently of each other. Step times are
    relative to those of 1f1b on the same graph; peak live are the microbatches kept for a backward, on the
    mesh that keeps the most, in units of a whole stage's.

    Args:
        stages: Numbers of pipeline stages, a case each, e.g. [2,4,8].
        microbatches: Numbers of microbatches, a case each, e.g. [4,8,16].
        chunks: Stages that a mesh holds with interleaved_1f1b.
        encoder: Cost of an encoder's piece of a program, in the cost of a stage's program of that kind.
        costs: What the programs and transfers of a stage take.
    """
    _check(stages, microbatches, chunks, encoder)
    with busy("simulating"):
        pairs = list(itertools.product(stages, microbatches))
        alone = [_alone(p, m, chunks, costs) for p, m in pairs]
        encoded = [_with_encoder(p, m, encoder, costs) for p, m in pairs]
    numbers = {"chunks": chunks, "encoder": encoder, "alone": alone, "with_encoder": encoded}
    titles = {
        "alone": f"a language model alone; {chunks} chunks a mesh with interleaved_1f1b",
        "with_encoder": f"with an encoder on all devices, whose pieces cost {encoder:g} times a stage's programs",
    }
    return Outcome(numbers=numbers, shown=tuple(_table(title, numbers[key]) for key, title in titles.items()))


def _check(stages: list[int], microbatches: list[int], chunks: int, encoder: float) -> None:
    if not stages or not microbatches or min(*stages, *microbatches, chunks) < 1:
        raise ConfigError(
            f"stages is {stages}, microbatches {microbatches} and chunks {chunks}; give numbers of 1 or more"
        )
    if encoder < 0:
        raise ConfigError(f"encoder is {encoder}; give a factor of 0 or more")


def _alone(stages: int, microbatches: int, chunks: int, given: KindCosts) -> dict[str, Any]:
    """One case of a language model alone."""
    plain, costs = pipeline(stages), given.costs()
    short = scaled(given, 1 / chunks).costs()
    found = {name: _judge(build_schedule(name, plain, microbatches), costs) for name in ("gpipe", "1f1b")}
    dealt = build_schedule("interleaved_1f1b", pipeline(stages, chunks=chunks), microbatches)
    found["interleaved_1f1b"] = _judge(dealt, short, chunks)
    found["zero_bubble"] = _judge(build_schedule("zero_bubble", plain, microbatches), costs)
    for name, closed in CLOSED_FORMS.items():
        found[name]["closed_form"] = closed(stages, microbatches, chunks) if _is_closed(name, given) else None
    return _case(stages, microbatches, found)


def _with_encoder(stages: int, microbatches: int, share: float, given: KindCosts) -> dict[str, Any]:
    """One case of an encoder on the devices of all stages."""
    graph = pipeline(stages, encoder=True)
    pieces = scaled(given, share).costs()
    programs = (kind for kind in Kind if kind is not Kind.TRANSFER)
    costs = dataclasses.replace(given.costs(), of={("vision", kind): getattr(pieces, kind.value) for kind in programs})
    found = {name: _judge(build_schedule(name, graph, microbatches, costs), costs) for name in ENCODED}
    return _case(stages, microbatches, found)


def pipeline(stages: int, *, chunks: int = 1, encoder: bool = False) -> StageGraph:
    """A language model of stages llm.0, llm.1, ..., with one device a mesh, and an independent encoder on all."""
    names = [f"llm.{index}" for index in range(stages * chunks)]
    nodes = [StageNode(name=n, module="llm", index=i, devices=(i % stages,)) for i, n in enumerate(names)]
    if encoder:
        everywhere = tuple(range(stages))
        nodes.insert(0, StageNode(name="vision", module="vision", index=0, devices=everywhere, independent=True))
        names.insert(0, "vision")
    edges = (StageEdge(name=f"{a}->{b}", source=a, destination=b) for a, b in itertools.pairwise(names))
    return StageGraph(stages=tuple(nodes), edges=tuple(edges))


def scaled(given: KindCosts, share: float) -> KindCosts:
    """The costs of stages that do a share of the work, but hand over as much."""
    costs = {name: share * cost for name, cost in dataclasses.asdict(given).items()}
    return KindCosts(**{**costs, "transfer": given.transfer})


# The idle share of p equal stages over m microbatches, with v chunks a mesh.
CLOSED_FORMS: dict[str, Callable[[int, int, int], float]] = {
    "gpipe": lambda p, m, v: (p - 1) / (m + p - 1),
    "1f1b": lambda p, m, v: (p - 1) / (m + p - 1),
    "interleaved_1f1b": lambda p, m, v: 1 - v * m / (v * max(m, p) + min(m, p) - 1),
    "zero_bubble": lambda p, m, v: 1 - 3 * m / (2 * m + p - 1 + max(m, p)),
}


def _is_closed(name: str, given: KindCosts) -> bool:
    """Whether the closed form of a schedule holds for these costs: no transfers or updates, and stages alike."""
    plain = given.update == given.transfer == 0
    halves = given.forward == given.backward_input == given.backward_weight == given.backward / 2
    return plain and (halves if name == "zero_bubble" else True)


def _judge(schedule: Schedule, costs: Costs, chunks: int = 1) -> dict[str, Any]:
    check(schedule)
    timeline = simulate(schedule, costs)
    return {
        "idle_share": timeline.idle_share(),
        "makespan": timeline.makespan,
        "peak_live_microbatches": peak_live(schedule) / chunks,
    }


def peak_live(schedule: Schedule) -> int:
    """The most microbatches that one module keeps on one mesh at one time, those of all its stages there together."""
    graph = schedule.graph
    live, peak = Counter(), 0
    for action in schedule.actions:
        stage = graph.stage(action.stage)
        here = (stage.module, graph.occupies(stage.name))
        if stage.backward:
            live[here] += (action.kind is Kind.FORWARD) - (action.kind in ENDS_MICROBATCH)
            peak = max(peak, live[here])
    return peak


def _case(stages: int, microbatches: int, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    reference = found["1f1b"]["makespan"]
    for row in found.values():
        row["step_time"] = row["makespan"] / reference if reference else 1.0
    return {"stages": stages, "microbatches": microbatches, "schedules": found}


def _table(title: str, cases: list[dict[str, Any]]) -> Table:
    closed = any("closed_form" in row for case in cases for row in case["schedules"].values())
    table = Table(title=title, title_justify="left")
    headings = ["stages", "microbatches", "schedule", "idle", *(["closed form"] if closed else [])]
    for heading in (*headings, "peak live", "step time"):
        named = heading == "schedule"
        table.add_column(heading, justify="left" if named else "right", no_wrap=named)
    for case in cases:
        where = [str(case["stages"]), str(case["microbatches"])]
        for name, row in case["schedules"].items():
            formula = [_share(row.get("closed_form"))] if closed else []
            numbers = (f"{row['peak_live_microbatches']:g}", f"{row['step_time']:.3f}")
            table.add_row(*where, name, _share(row["idle_share"]), *formula, *numbers)
            where = ["", ""]
        table.add_section()
    return table


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
