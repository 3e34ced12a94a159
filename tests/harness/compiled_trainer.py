"""Trainers of the parity problem, their compiled steps, and steps of which a test compiles only what it reads."""

from collections.abc import Sequence

from hetjax import Trainer
from hetjax.compilation.compile_all import compile_all
from hetjax.execution.step_programs import Step
from hetjax.meshes import Layout, Placement
from tests.harness.parity.problem import make_batch, make_graph, make_optimizer


def make_trainer(vision: Layout, llm: Layout, **options) -> Trainer:
    placement = Placement({"vision": vision, "llm": llm})
    return Trainer(make_graph(), placement, optimizer=make_optimizer(), **{"microbatches": 2, **options})


def compiled_step(vision: Layout, llm: Layout, **options) -> Step:
    trainer = make_trainer(vision, llm, **options)
    trainer.compile(make_batch())
    return trainer.compiled


def trace_alone(trainer: Trainer, batch) -> Step:
    """A step whose programs are traced, for a test that reads shapes."""
    return trainer.trace(batch).step


def compile_some(trainer: Trainer, batch, *, programs: Sequence[str] = (), updates: Sequence[str] = ()) -> Step:
    """A step whose other programs are traced only, for a test that reads what is compiled and runs no step.

    Args:
        programs: stages whose forward and backward are compiled.
        updates: stages whose programs of the end of a step are compiled.
    """
    step = trace_alone(trainer, batch)
    tasks = {f"{name} programs": step.programs[name].compile for name in programs}
    compile_all(tasks | {f"{name} update": step.updates[name].compile for name in updates}, progress=False)
    return step
