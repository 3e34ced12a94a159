"""hetjax timeline: the schedule of a run, as a picture or as a trace to open in Perfetto."""

from __future__ import annotations

from collections.abc import Mapping

from hetjax.config.build import batch_shapes, build_trainer, use_devices
from hetjax.config.run_config import TrainConfig
from hetjax.errors import ConfigError
from hetjax.execution.action_timer import ActionTimer
from hetjax.execution.flops import estimated_costs
from hetjax.schedule import Costs, Kind, Report, Timeline, simulate
from hetjax.schedule.trace import write_trace
from hetjax.tools.given_costs import GivenCosts
from hetjax.tools.outcome import Json, Outcome, busy
from hetjax.tools.pictures import PICTURES, output_path
from hetjax.tools.random_batch import random_batch
from hetjax.tools.tables import NumberTable
from hetjax.trainer import Trainer

WARMUP, TIMED = 2, 3  # steps


def timeline(
    *,
    config: TrainConfig,
    out: str = "timeline.png",
    trace: str | None = None,
    measured: bool = False,
    costs: GivenCosts | None = None,
) -> Outcome:
    """Draw a run's schedule: a lane for each mesh, a box for each program, an arrow for each transfer.

    Program lengths are estimated from the FLOPs of their matrix products, measured on this machine, or given.

    Args:
        out: Picture (.png, .svg, .pdf), or a trace for ui.perfetto.dev (.json).
        trace: Trace to write beside a picture, ending in .json.
        measured: Whether to run a few steps on random data and take the times of their programs.
        costs: What programs and transfers take, instead of an estimate; those not given are as in a pipeline of
            equal stages.
    """
    if measured and costs is not None:
        raise ConfigError("measured is true and costs are given; leave one of them out")
    path = output_path(out, (*PICTURES, ".json"))
    trace_path = None if trace is None else output_path(trace, (".json",))
    use_devices(config.fake_devices, (config.param_dtype, config.compute_dtype))
    trainer = build_trainer(config, schedule_costs=None if costs is None else costs.costs())
    traced = None
    if costs is not None:
        taken, unit = costs.costs(), "unit of the given costs"
    elif measured:
        taken, unit = _measure(trainer, config), "seconds"
    else:
        traced = trainer.trace(batch_shapes(config.data, config.model))
        taken, unit = estimated_costs(traced.step), "longest forward"
    schedule, report = (trainer.schedule, trainer.report) if traced is None else (traced.schedule, traced.report)
    found = simulate(schedule, taken)
    if path.suffix == ".json":
        write_trace(found, path)
    else:
        from hetjax.schedule.draw import draw  # only here: matplotlib takes a while to import

        title = f"{config.name}: {schedule.label}"
        draw(found, path, title=title, unit="ms" if measured else "units")
    if trace_path is not None:
        write_trace(found, trace_path)
    numbers = _numbers(found, report, unit)
    written = [name for name in (out, trace) if name]
    return Outcome(numbers={**numbers, "written": written}, shown=(_table(numbers), f"wrote {', '.join(written)}"))


def _measure(trainer: Trainer, config: TrainConfig) -> Costs:
    """Return the median seconds of each program and transfer, over a few steps that wait for each."""
    batch = random_batch(batch_shapes(config.data, config.model), vocab_size=config.model.components["llm"].vocab_size)
    with busy("compiling"):
        trainer.compile(batch)
    timer = ActionTimer()
    with busy("measuring"):
        state = trainer.init(config.seed)
        for _ in range(WARMUP):
            state, _ = trainer.step(state, batch)
        for _ in range(TIMED):
            timer.start(state)
            state, _ = trainer.step(state, batch, observe=timer)
    return timer.costs()


def _numbers(found: Timeline, report: Report, unit: str) -> dict[str, Json]:
    schedule = found.schedule
    return {
        "schedule": schedule.name,
        "label": schedule.label,
        "microbatches": schedule.microbatches,
        "unit": unit,
        "makespan": found.makespan,
        "idle_share": found.idle_share(),
        "peak_live_microbatches": max(report.peak_live[stage.name] * stage.window for stage in schedule.graph.stages),
        "stages": {
            stage.name: {
                "devices": list(stage.devices),
                "idle_share": found.idle_share(stage.name),
                "microbatches": schedule.count(stage.name),
                "peak_live_microbatches": report.peak_live[stage.name],
                **{kind.value: _longest(found, stage.name, kind) for kind in Kind if kind is not Kind.TRANSFER},
            }
            for stage in schedule.graph.stages
        },
    }


def _longest(found: Timeline, stage: str, kind: Kind) -> float | None:
    """Return how long a stage's program takes; None where it has none of that kind."""
    spans = [span for span in found.spans if span.stage == stage and span.action.kind is kind]
    return max((span.end - span.start for span in spans), default=None)


def _table(numbers: Mapping[str, Json]) -> NumberTable:
    in_seconds = numbers["unit"] == "seconds"

    def shown(length: float | None) -> str:
        return "none" if length is None else f"{1000 * length:.3g} ms" if in_seconds else f"{length:.3g}"

    units = {"seconds": "", "longest forward": " longest forwards"}.get(numbers["unit"], " units")
    total = f"makespan {shown(numbers['makespan'])}{units}"
    title = f"{numbers['label']}: {total}, idle {numbers['idle_share']:.1%}"
    rows = []
    for name, stage in numbers["stages"].items():
        parts = [shown(stage[kind]) for kind in ("backward_input", "backward_weight") if stage[kind] is not None]
        lengths = (shown(stage["forward"]), " + ".join(parts) or shown(stage["backward"]), shown(stage["update"]))
        rows.append((name, *lengths, f"{stage['idle_share']:.1%}", str(stage["peak_live_microbatches"])))
    headings = ("forward", "backward", "update", "idle", "peak live microbatches")
    return NumberTable(title=title, texts=("stage",), numbers=headings, rows=rows)
