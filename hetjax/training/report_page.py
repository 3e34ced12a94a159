"""Write runs/<name>/report.html: what a run is, how it went, and where its time and memory went; one file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jinja2

from hetjax.evaluation.answer_prompts import Answered
from hetjax.evaluation.results import SetResult
from hetjax.execution.action_timer import ActionTimer
from hetjax.execution.flops import estimated_costs
from hetjax.fit.held import device_groups
from hetjax.fit.step_bytes import link_bytes, stage_bytes
from hetjax.meshes import format_devices
from hetjax.metrics.registry import Metric, total
from hetjax.schedule import Costs, Timeline, simulate
from hetjax.trainer import Trainer
from hetjax.training.display import PlacementRow, format_bytes, placement_rows
from hetjax.training.memory import memory_held
from hetjax.training.metrics import StepMetrics
from hetjax.training.report_pictures import curves, placement_picture, timeline_picture
from hetjax.training.report_template import PAGE

REPORT_FILE = "report.html"
_MOST_ANSWERS = 8
_MOST_SPANS = 1500  # boxes of a timeline; more are neither read nor quickly drawn
_HEADLINE = ("loss", "grad_norm", "learning_rate", "tokens_per_second", "tflops_per_second", "mfu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunReport:
    """What the page of a run is made of.

    Attributes:
        name: the run's name.
        settings: its settings, as YAML.
        total_steps: the steps that it is to have.
        steps: the metrics of each step.
        trainer: its trainer, compiled.
        timer: the times of the programs of the last step that was timed; None where none was, and where other
            processes run some of them.
        evaluated: what the last evaluation found.
        best: its best checkpoint, in words; None for none.
    """

    name: str
    settings: str
    total_steps: int
    steps: Sequence[StepMetrics]
    trainer: Trainer
    timer: ActionTimer | None
    evaluated: tuple[SetResult, ...]
    best: str | None


def write_report(report: RunReport, folder: Path) -> Path:
    """Write the page into a run's folder; returns its path."""
    found = _timelines(report)
    modules = list(report.trainer.graph.modules)
    simulated = [each for each in found if each.timeline is not None]
    small = [each for each in simulated if len(each.timeline.spans) <= _MOST_SPANS]
    notes = [] if len(small) == len(simulated) else ["The timelines are too long to draw here: `hetjax timeline` does."]
    if report.timer is None:
        notes.append("No step was timed in this process alone, so that no programs were measured (profile_every).")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    page = environment.from_string(PAGE).render(
        name=report.name,
        steps=report.total_steps,
        last=report.steps[-1],
        best=report.best,
        headline=list(_headline(report)),
        curves=curves(report.steps),
        sets=[_answers(each) for each in report.evaluated if each.given is not None],
        placement=placement_picture(report.trainer.placement, report.name),
        stages=[_stage_row(row) for row in placement_rows(report.trainer)],
        memory=list(_memory(report.trainer)) if all(stage.is_local for stage in report.trainer.stages) else [],
        modules=modules,
        timelines=[_timeline_row(each, modules, report.steps) for each in found],
        pictures=[
            {"words": each.words, "uri": timeline_picture(each.timeline, each.words, unit=each.unit)} for each in small
        ],
        notes=notes,
        settings=report.settings,
    )
    path = folder / REPORT_FILE
    partial = path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def _headline(report: RunReport) -> Iterator[tuple[str, str]]:
    last = report.steps[-1]
    for name in _HEADLINE:
        # A timed step has no rates: the newest step that has one.
        value = next((step[name] for step in reversed(report.steps) if name in step), None)
        if value is not None:
            yield name, f"{value:.6g}"
    for name, value in last.items():
        if name.startswith("eval/"):
            yield name, f"{value:.6g}"


class _Step(NamedTuple):
    """A step on the page: measured whole, or simulated from the costs of its programs."""

    words: str
    unit: str
    timeline: Timeline | None


def _timelines(report: RunReport) -> list[_Step]:
    step = report.trainer.compiled

    def simulated(costs: Costs) -> Timeline:
        return simulate(step.schedule, costs)

    found = [_Step("measured, whole steps", "ms", None)]
    if report.timer is not None:
        found.append(_Step("simulated, by the measured times of programs", "ms", simulated(report.timer.costs())))
    estimate = simulated(estimated_costs(step))
    return [*found, _Step("simulated, by FLOPs, in longest forwards", "units", estimate)]


def _timeline_row(step: _Step, modules: Sequence[str], steps: Sequence[StepMetrics]) -> dict[str, object]:
    if step.timeline is None:
        whole = [1000 * row["tokens"] / row["tokens_per_second"] for row in steps if row.get("tflops_per_second")]
        shares = {module: [row[f"idle/{module}"] for row in steps if f"idle/{module}" in row] for module in modules}
        idle = [f"{shares[module][-1]:.1%}" if shares[module] else "" for module in modules]
        # The first steps of a process still warm up.
        taken = f"{median(whole[2:] or whole):.4g} ms" if whole else ""
        return {"words": step.words, "makespan": taken, "idle": idle}
    graph = step.timeline.schedule.graph
    idle = []
    for module in modules:
        devices = {device for node in graph.stages if node.module == module for device in graph.occupies(node.name)}
        idle.append(f"{step.timeline.idle_share_of(devices):.1%}")
    length = step.timeline.makespan
    makespan = f"{1000 * length:.4g} ms" if step.unit == "ms" else f"{length:.4g}"
    return {"words": step.words, "makespan": makespan, "idle": idle}


def _stage_row(row: PlacementRow) -> dict[str, str]:
    return {
        "stage": row.stage,
        "mesh": row.mesh,
        "devices": format_devices(row.devices),
        "parameters": f"{row.parameters:,}",
        "trained": f"{row.trained_parameters:,}",
        "state": format_bytes(row.bytes_per_device),
    }


def _memory(trainer: Trainer) -> Iterator[dict[str, str]]:
    """Yield for each group of devices with the same stages what it needs at most, and what was held where counted."""
    step, held = trainer.compiled, memory_held(trainer)
    local = [stage.name for stage in trainer.stages if stage.is_local]
    for group in device_groups(step.schedule, stage_bytes(step, local), link_bytes(step)):
        peaks = [held[device]["peak_bytes_in_use"] for device in group.devices if device in held]
        yield {
            "devices": format_devices(sorted(group.devices)),
            "stages": ", ".join(group.stages),
            "counted": format_bytes(group.peak.total),
            "at": f"{group.peak.action} of {group.peak.stage}",
            "held": format_bytes(max(peaks)) if peaks else "not counted here",
        }


class _Score(NamedTuple):
    """The score of an answer by one metric on the page, and whether none is better."""

    text: str
    is_right: bool

    @classmethod
    def of(cls, answered: Answered, metric: Metric) -> _Score:
        number = total([answered.measures[metric.name]]).number
        return cls(f"{number:.3g}", number == (1 if metric.higher_is_better else 0))


def _answers(result: SetResult) -> tuple[str, list[str], list[dict[str, object]]]:
    names = [metric.name for metric in result.metrics]
    shown = [
        {
            "where": each.where,
            "prompt": each.prompt,
            "expected": " | ".join(each.expected),
            "answer": each.answer,
            "scores": [_Score.of(each, metric) for metric in result.metrics],
        }
        for each in result.given.answered[:_MOST_ANSWERS]
    ]
    return f"{result.settings.prefix}: {result.given.count} answers", names, shown
