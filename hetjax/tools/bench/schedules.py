"""hetjax bench schedules: how long each schedule leaves devices idle, simulated."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Sequence

from hetjax.errors import ConfigError
from hetjax.schedule import (
    SCHEDULES,
    Costs,
    Kind,
    Schedule,
    StageEdge,
    StageGraph,
    StageNode,
    bubble_fill,
    check,
    colocated,
    gpipe,
    interleaved_1f1b,
    one_f_one_b,
    simulate,
    zero_bubble,
)
from hetjax.schedule.actions import ENDS_MICROBATCH
from hetjax.tools.given_costs import KindCosts
from hetjax.tools.outcome import Json, Outcome, busy
from hetjax.tools.tables import NumberTable

ALONE = (gpipe, one_f_one_b, interleaved_1f1b, zero_bubble)
WITH_ENCODER = (one_f_one_b, colocated, bubble_fill)
# The idle share of p equal stages over m microbatches, with v chunks a mesh.
CLOSED_FORMS: dict[str, Callable[[int, int, int], float]] = {
    gpipe.name: lambda p, m, v: (p - 1) / (m + p - 1),
    one_f_one_b.name: lambda p, m, v: (p - 1) / (m + p - 1),
    interleaved_1f1b.name: lambda p, m, v: 1 - v * m / (v * max(m, p) + min(m, p) - 1),
    zero_bubble.name: lambda p, m, v: 1 - 3 * m / (2 * m + p - 1 + max(m, p)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of a schedule on one graph, in the units of the given costs.

    Attributes:
        idle_share: of all devices, 0 to 1.
        closed_form: the same by formula, where one holds.
        peak_live_microbatches: kept for a backward on the mesh that keeps the most, in units of a whole stage's.
        step_time: the makespan relative to that of 1F1B on the same graph.
    """

    idle_share: float
    makespan: float
    peak_live_microbatches: float
    step_time: float
    closed_form: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """The figures of several schedules, by name, on graphs of one size."""

    stages: int
    microbatches: int
    schedules: dict[str, Figures]


def schedules(
    *,
    stages: list[int] = [2, 4, 8],  # noqa: B006, never changed; shown in --help
    microbatches: list[int] = [4, 8, 16],  # noqa: B006
    chunks: int = 2,
    encoder: float = 0.5,
    window: int = 1,
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
        encoder: Cost of an encoder's piece of a microbatch, in the cost of a stage's program of that kind.
        window: Microbatches that the encoder takes at once.
        costs: What the programs and transfers of a stage take.
    """
    _check(stages, microbatches, chunks, encoder, window)
    with busy("simulating"):
        pairs = list(itertools.product(stages, microbatches))
        alone = [_alone(p, m, chunks, costs) for p, m in pairs]
        encoded = [_with_encoder(p, m, encoder, window, costs) for p, m in pairs]
    numbers = {
        "chunks": chunks,
        "encoder": encoder,
        "window": window,
        "alone": [_numbers(case, closed_forms=True) for case in alone],
        "with_encoder": [_numbers(case, closed_forms=False) for case in encoded],
    }
    at_once = f", {window} microbatches at once" if window > 1 else ""
    shown = (
        _table(
            f"a language model alone; {chunks} chunks a mesh with {interleaved_1f1b.name}", alone, closed_forms=True
        ),
        _table(
            f"with an encoder on all devices, whose pieces cost {encoder:g} times a stage's programs{at_once}",
            encoded,
            closed_forms=False,
        ),
        "\n".join(f"{builder.name}: {builder.summary}" for builder in SCHEDULES.values()),
    )
    return Outcome(numbers=numbers, shown=shown)


def _check(stages: list[int], microbatches: list[int], chunks: int, encoder: float, window: int) -> None:
    if not stages or not microbatches or min(*stages, *microbatches, chunks, window) < 1:
        raise ConfigError(
            f"stages is {stages}, microbatches {microbatches}, chunks {chunks} and window {window}; give numbers of 1 "
            "or more"
        )
    if encoder < 0:
        raise ConfigError(f"encoder is {encoder}; give a factor of 0 or more")


def _alone(stages: int, microbatches: int, chunks: int, given: KindCosts) -> Case:
    """Return one case of a language model alone."""
    plain, costs = pipeline(stages), given.costs()
    dealt, short = pipeline(stages, chunks=chunks), scaled(given, 1 / chunks).costs()
    reference = simulate(one_f_one_b(plain, microbatches), costs).makespan
    found = {}
    for builder in ALONE:
        several = chunks if builder is interleaved_1f1b else 1
        schedule = builder(dealt if builder is interleaved_1f1b else plain, microbatches)
        figures = _judge(schedule, short if builder is interleaved_1f1b else costs, reference, chunks=several)
        if _is_closed(builder.name, given):
            formula = CLOSED_FORMS[builder.name](stages, microbatches, chunks)
            figures = dataclasses.replace(figures, closed_form=formula)
        found[builder.name] = figures
    return Case(stages=stages, microbatches=microbatches, schedules=found)


def _with_encoder(stages: int, microbatches: int, share: float, window: int, given: KindCosts) -> Case:
    """Return one case of an encoder on the devices of all stages."""
    graph = pipeline(stages, encoder=True, window=window)
    pieces = scaled(given, share).costs()
    times = {kind: 1 if kind is Kind.UPDATE else window for kind in Kind if kind is not Kind.TRANSFER}
    of = {("vision", kind): count * getattr(pieces, kind.value) for kind, count in times.items()}
    costs = dataclasses.replace(given.costs(), of=of)
    reference = simulate(one_f_one_b(graph, microbatches), costs).makespan
    found = {builder.name: _judge(builder(graph, microbatches, costs), costs, reference) for builder in WITH_ENCODER}
    return Case(stages=stages, microbatches=microbatches, schedules=found)


def pipeline(stages: int, *, chunks: int = 1, encoder: bool = False, window: int = 1) -> StageGraph:
    """Return the graph of a language model of stages llm.0, llm.1, ..., with one device a mesh.

    With `encoder` an independent encoder stands on all devices before it, which takes `window` microbatches at once.
    """
    names = [f"llm.{index}" for index in range(stages * chunks)]
    nodes = [StageNode(name=n, module="llm", index=i, devices=(i % stages,)) for i, n in enumerate(names)]
    if encoder:
        everywhere = tuple(range(stages))
        vision = StageNode(name="vision", module="vision", index=0, devices=everywhere, independent=True, window=window)
        nodes.insert(0, vision)
        names.insert(0, "vision")
    edges = (StageEdge(name=f"{a}->{b}", source=a, destination=b) for a, b in itertools.pairwise(names))
    return StageGraph(stages=tuple(nodes), edges=tuple(edges))


def scaled(given: KindCosts, share: float) -> KindCosts:
    """Return the costs of stages that do a share of the work, but hand over as much."""
    costs = {name: share * cost for name, cost in dataclasses.asdict(given).items()}
    return KindCosts(**{**costs, "transfer": given.transfer})


def _is_closed(name: str, given: KindCosts) -> bool:
    """Whether the closed form of a schedule holds for these costs: no transfers or updates, and stages alike."""
    plain = given.update == given.transfer == 0
    halves = given.forward == given.backward_input == given.backward_weight == given.backward / 2
    return plain and (halves if name == zero_bubble.name else True)


def _judge(schedule: Schedule, costs: Costs, reference: float, *, chunks: int = 1) -> Figures:
    """Simulate a schedule; `reference` is the makespan that its own is compared with."""
    check(schedule)
    timeline = simulate(schedule, costs)
    return Figures(
        idle_share=timeline.idle_share(),
        makespan=timeline.makespan,
        peak_live_microbatches=peak_live(schedule) / chunks,
        step_time=timeline.makespan / reference if reference else 1.0,
    )


def peak_live(schedule: Schedule) -> int:
    """Return the most microbatches that one module keeps on one mesh at one time, over all its stages there."""
    graph = schedule.graph
    live, peak = Counter(), 0
    for action in schedule.actions:
        stage = graph.stage(action.stage)
        mesh = (stage.module, graph.occupies(stage.name))
        if stage.backward:
            live[mesh] += stage.window * ((action.kind is Kind.FORWARD) - (action.kind in ENDS_MICROBATCH))
            peak = max(peak, live[mesh])
    return peak


def _numbers(case: Case, *, closed_forms: bool) -> dict[str, Json]:
    numbers = dataclasses.asdict(case)
    if not closed_forms:
        for figures in numbers["schedules"].values():
            del figures["closed_form"]
    return numbers


def _table(title: str, cases: Sequence[Case], *, closed_forms: bool) -> NumberTable:
    rows = []
    for case in cases:
        size = [str(case.stages), str(case.microbatches)]
        for name, figures in case.schedules.items():
            formula = [_share(figures.closed_form)] if closed_forms else []
            rest = (f"{figures.peak_live_microbatches:g}", f"{figures.step_time:.3f}")
            rows.append([*size, name, _share(figures.idle_share), *formula, *rest])
            size = ["", ""]
        rows.append([])
    numbers = ("idle", *(["closed form"] if closed_forms else []), "peak live", "step time")
    return NumberTable(title=title, texts=("stages", "microbatches", "schedule"), numbers=numbers, rows=rows)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
