"""Check a run against devices that are not there: compile its programs for them, and report what they need."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from rich.console import Console

from hetjax.compilation.compile_all import compile_all
from hetjax.compilation.targets import Target, parse_target, target_devices
from hetjax.config.build import assumed_packings, batch_shapes, build_trainer, use_devices
from hetjax.config.run_config import TrainConfig
from hetjax.config.target_options import TargetOptions
from hetjax.errors import ConfigError
from hetjax.execution.flops import NO_PACKINGS, Packings
from hetjax.execution.step_programs import Step
from hetjax.execution.traced_step import TracedStep
from hetjax.fit.advice import verdict
from hetjax.fit.held import device_groups
from hetjax.fit.program_facts import program_facts
from hetjax.fit.report import FitReport, mesh_needs
from hetjax.fit.step_bytes import link_bytes, stage_bytes
from hetjax.fit.target_limits import check_holds, slow_tensor
from hetjax.schedule.host_memory.offload import offload_lines
from hetjax.stages.batch import check_batch
from hetjax.tools.pictures import output_path
from hetjax.tools.target.show import tables


def check_run(config: TrainConfig, options: TargetOptions, *, results: Console, progress: Console) -> FitReport:
    """Compile a run's programs for the target and print, write and draw the report; nothing runs, no data is read.

    Args:
        config: the settings of the run.
        options: the target, and where the report goes.
        results: where the report is printed.
        progress: where warnings and the progress of compiling are printed.

    Raises HetjaxError or PlacementError for what does not fit the target, before anything is compiled.
    """
    target = parse_target(options.target)
    picture = None if options.picture is None else output_path(options.picture)
    report = compile_run(config, target, only=options.only, progress=progress)
    if options.json is not None:
        text = json.dumps(report.numbers(), indent=1)
        print(text, flush=True) if options.json == "-" else Path(options.json).write_text(text + "\n")
    if picture is not None:
        from hetjax.tools.target.picture import draw_memory  # only here: matplotlib takes a while to import

        draw_memory(report.meshes, picture, title=f"{config.name} on {target.name}")
    # Where stdout is for the JSON alone, what it comes to is still said.
    shown, console = (verdict(report), progress) if options.json == "-" else (tables(report), results)
    for item in shown:
        console.print(item, highlight=False, soft_wrap=isinstance(item, str), markup=False)
    return report


def compile_run(config: TrainConfig, target: Target, *, only: str | None = None, progress: Console) -> FitReport:
    """Compile a run's programs for a target, or those of one module or stage, and return the report.

    Raises as `check_run`.
    """
    check_holds(target, config.placement)
    use_devices(None, (config.param_dtype, config.compute_dtype))
    trainer = build_trainer(config, devices=target_devices(target.name))
    check_batch(trainer.stages, config.data.batch_size, trainer.microbatches)
    chosen = _chosen(only, [(stage.name, stage.module) for stage in trainer.stages])
    for warning in slow_tensor(target, trainer.placement):
        progress.print(f"warning: {warning}")
    traced = trainer.trace(batch_shapes(config.data, config.model))
    if config.data.shapes > 1:
        progress.print(
            f"data.shapes is {config.data.shapes}: this is the report on the largest; others, which the data choose, "
            "need no more of a device",
            highlight=False,
        )
    for line in offload_lines(traced.schedule, trainer.offload):
        progress.print(line, highlight=False)
    failed = _compile(_tasks(traced, chosen), progress)
    incomplete = {task.partition(" ")[0] for task in failed}
    compiled = [name for name in chosen if name not in incomplete]
    packings = assumed_packings(config.data, config.model)
    return fit_report(traced, target, chosen=chosen, compiled=compiled, failed=failed, packings=packings)


def fit_report(
    traced: TracedStep,
    target: Target,
    *,
    chosen: Collection[str],
    compiled: Collection[str],
    failed: Mapping[str, str],
    packings: Packings = NO_PACKINGS,
) -> FitReport:
    """Return the report on a step whose programs are compiled for a target.

    Args:
        traced: the step.
        target: the devices that it is for.
        chosen: the stages that the report is about.
        compiled: those of them whose programs compiled.
        failed: why others did not, by task.
        packings: the segments that are assumed in counts of products.
    """
    step = traced.step
    groups = device_groups(step.schedule, stage_bytes(step, compiled), link_bytes(step))
    return FitReport(
        meshes=mesh_needs(step.schedule, groups, target.hardware, chosen),
        programs=program_facts(step, compiled, packings),
        failed=failed,
        kept=traced.report.peak_live,
        compiled=compiled,
        stages=tuple(step.stages),
        packings=packings,
    )


def _chosen(only: str | None, stages: list[tuple[str, str]]) -> list[str]:
    """Return the names of all stages, or of those of a module or a stage. Raises ConfigError."""
    chosen = [name for name, module in stages if only in (None, name, module)]
    if not chosen:
        known = ", ".join(dict.fromkeys([*(module for _, module in stages), *(name for name, _ in stages)]))
        raise ConfigError(f"--only {only} names no module or stage; there are {known}")
    return chosen


def _tasks(traced: TracedStep, chosen: Collection[str]) -> dict[str, Callable[[], object]]:
    """Return what is to be compiled: all, or what stages and the links between some of them need."""
    step, tasks = traced.step, traced.tasks
    if len(chosen) < len(step.stages):
        links = [name for name, link in step.links.items() if link.source in chosen and link.destination in chosen]
        tasks = {task: run for task, run in tasks.items() if task.partition(" ")[0] in {*chosen, *links}}
    # A stage's backward waits for its forward: what takes longest begins first, and the rest runs beside it.
    return dict(sorted(tasks.items(), key=lambda task: -_weights(step, task[0])))


def _weights(step: Step, task: str) -> int:
    """Return the weights of the stage whose forward and backward a task compiles, each a stack at most; 0 of others."""
    name, _, programs = task.partition(" ")
    return len(step.stages[name].params) if programs == "forward and backward" else 0


def _compile(tasks: Mapping[str, Callable[[], object]], progress: Console) -> dict[str, str]:
    """Compile all, and return why some failed, in the first line of what the compiler said."""
    failed: dict[str, str] = {}

    def attempt(task: str, run: Callable[[], object]) -> Callable[[], None]:
        def compile_it() -> None:
            try:
                run()
            except RuntimeError as error:  # what XLA raises for a program that it cannot compile
                failed[task] = str(error).strip().partition("\n")[0]
            if not progress.is_terminal:
                progress.print(f"{'failed' if task in failed else 'compiled'}: {task}", highlight=False)

        return compile_it

    compile_all(
        {task: attempt(task, run) for task, run in tasks.items()}, progress=progress.is_terminal, console=progress
    )
    return failed
