"""hetjax fit: what several runs need of devices that are not there, a row a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import jax
from rich.markup import escape

from hetjax.compilation.targets import Target, parse_target
from hetjax.config.run_config import load_config
from hetjax.errors import ConfigError
from hetjax.fit.advice import GIB
from hetjax.fit.report import FitReport
from hetjax.tools.outcome import Outcome, stderr
from hetjax.tools.target.check_run import compile_run

_HEADINGS = (
    *("config", "weights and optimizer", "residuals and boundaries", "temporaries", "reserve"),
    *("peak", "to spare", "products done / needed", "CPU seconds"),
)


def fit(target: str, *, configs: list[str] | None = None) -> Outcome:
    """Compile the programs of runs for devices that are not there, and show as Markdown what each needs of a device.

    Args:
        target: The devices, such as h100x256; docs/targets.md says which there are.
        configs: Files with the settings of the runs.
    """
    if not configs:
        raise ConfigError("no config is given; name the files of runs, e.g. --configs configs/digits.yaml")
    found = parse_target(target)
    # What XLA says of the memory it lacks is the table's to say.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    settings = [load_config(["--config", path])[0] for path in configs]
    reports: dict[str, tuple[FitReport, float]] = {}
    for number, config in enumerate(settings, start=1):
        stderr().print(f"{escape(config.name)}: {number} of {len(settings)}", highlight=False)
        start = _cpu_seconds()
        report = compile_run(config, found, progress=stderr())
        reports[config.name] = report, _cpu_seconds() - start
        # Or the traced programs of all runs stay in memory.
        jax.clear_caches()
    numbers = {name: {**report.numbers(), "cpu_seconds": seconds} for name, (report, seconds) in reports.items()}
    return Outcome(numbers={"target": target, "runs": numbers}, shown=("\n".join(markdown(found, reports)),))


def markdown(target: Target, reports: dict[str, tuple[FitReport, float]]) -> Iterator[str]:
    """Yield the lines of a table: GiB of the fullest device of each run when it holds the most, and what that took."""
    yield _line([*_HEADINGS[:5], f"peak of {target.hardware.memory_bytes / GIB:.1f} GiB", *_HEADINGS[6:]])
    yield _line(["---"] * len(_HEADINGS))
    for name, (report, seconds) in reports.items():
        yield _line([f"`{name}`", *_memory(report), "; ".join(_products(report)), f"{seconds:.0f}"])
    for name, (report, _) in reports.items():
        yield from (f"`{name}`: {task} does not compile: {why}" for task, why in report.failed.items())


def _memory(report: FitReport) -> Iterator[str]:
    fullest = report.fullest
    parts = fullest.numbers()
    for part in ("persistent_bytes", "residual_bytes", "temporary_bytes"):
        yield f"{parts[part] / GIB:.1f}"
    yield f"{fullest.reserve / GIB:.1f}"
    yield f"{fullest.needed / GIB:.1f}"
    yield "does not compile" if report.failed else f"{(fullest.capacity - fullest.needed) / fullest.capacity:.0%}"


def _products(report: FitReport) -> Iterator[str]:
    """Yield for each module the ratios of its forward and its backward, over all of its stages."""
    modules = dict.fromkeys(stage.partition(".")[0] for stage in report.stages)
    for module in modules:
        done, needed = {"forward": 0, "backward": 0}, {"forward": 0, "backward": 0}
        for facts in report.programs:
            stage, _, program = facts.name.partition(" ")
            way = program.partition("_")[0]
            if stage in report.stages and stage.partition(".")[0] == module and way in done:
                done[way] += facts.flops_done
                needed[way] += facts.flops_needed
        ratios = [f"{done[way] / needed[way]:.2f}" for way in done if needed[way]]
        if ratios:
            yield f"{module} {', '.join(ratios)}"


def _cpu_seconds() -> float:
    """Return the seconds that this process and the assemblers that it started have used of any core."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
