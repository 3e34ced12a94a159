"""What the text of each compiled program of a step says: products done and needed, large arrays, collectives."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from hetjax.compilation.compiled_program import Program
from hetjax.compilation.hlo import ProgramText, collectives, largest_arrays, matrix_products, read_program
from hetjax.execution.flops import NO_PACKINGS, Packings, backward_factor, forward_flops
from hetjax.execution.step_programs import Step
from hetjax.fit.array_rule import ArrayLimits, array_limits, joined
from hetjax.fit.held import CallBytes
from hetjax.fit.step_bytes import call_bytes, stage_programs
from hetjax.models.kernels.attention_scores import Packing
from hetjax.models.parallel.expert_parallel import FURTHER_ROUNDS

LARGEST = 10
"""How many of the largest arrays of a program are reported."""


class LargeArray(NamedTuple):
    """Arrays of one shape that a program makes in a device's memory.

    Attributes:
        bytes: of one of them.
        array: dtype and dims, such as "bf16[1,8,64,64]".
        times: how many of them a call makes.
        made_by: the operation that makes most of them.
        layer: the named scopes that it comes from; empty where it has none.
    """

    bytes: int
    array: str
    times: int
    made_by: str
    layer: str


class OversizedArray(NamedTuple):
    """Arrays of one shape that no program should make (`hetjax.fit.array_rule`).

    Attributes:
        bytes: of one of them.
        array: dtype and dims.
        layer: the named scopes that it comes from; empty where it has none.
        rule: what it breaks.
    """

    bytes: int
    array: str
    layer: str
    rule: str


class CollectiveUse(NamedTuple):
    """The collectives of a program that are of one kind.

    Attributes:
        kind: such as "all-gather".
        dtype: of what is sent.
        axes: the mesh axes along which devices take part, joined by "+".
        overlaps: whether something is computed meanwhile.
        times: how many of them a call runs.
        bytes: of all their results on one device.
    """

    kind: str
    dtype: str
    axes: str
    overlaps: bool
    times: int
    bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramFacts:
    """What is known of a compiled program, on one device.

    Attributes:
        name: the stage's or link's name and the program's in it: "llm.0 forward".
        executable: the same for programs that are alike and were compiled once.
        call: its bytes beside its arguments.
        flops_done: FLOPs of its products, times trip counts, under an even load of experts.
        flops_needed: FLOPs of the products that the module asks for, shared out over the devices of the mesh; of a
            backward, without what is computed again.
        uncounted: custom calls that may multiply, whose FLOPs are not known and not in `flops_done`.
        largest: its largest arrays, the largest first.
        oversized: those that no program should make, the largest first.
        collectives: what it sends, the most bytes first.
    """

    name: str
    executable: int
    call: CallBytes
    flops_done: int
    flops_needed: int
    uncounted: int
    largest: tuple[LargeArray, ...]
    oversized: tuple[OversizedArray, ...]
    collectives: tuple[CollectiveUse, ...]


def program_facts(step: Step, compiled: Collection[str], packings: Packings = NO_PACKINGS) -> list[ProgramFacts]:
    """Return the facts of all compiled programs of these stages, and of the links between them.

    `packings` are the segments that are assumed in counts of products.
    """
    needed = _needed(step, compiled, packings)
    limits = _Limits(step)
    read: dict[int, ProgramFacts] = {}
    facts = []
    for name, program in _programs(step, compiled):
        executable = id(program.compiled)
        if executable not in read:
            stage = step.stages.get(name.partition(" ")[0])
            packing = packings.get(stage.module, ()) if stage else ()
            read[executable] = _facts(name, program, packing, limits.of(name))
        alike = read[executable]
        facts.append(dataclasses.replace(alike, name=name, flops_needed=needed.get(name, 0)))
    return facts


def step_flops(step: Step, packings: Packings = NO_PACKINGS) -> int:
    """Return the FLOPs that all devices do in one step of compiled programs: products done, not those needed."""
    total = 0
    for facts in program_facts(step, step.stages, packings):
        stage, _, program = facts.name.partition(" ")
        if stage in step.stages:
            each_microbatch = program.startswith(("forward", "backward"))
            times = step.schedule.count(stage) if each_microbatch else 1
            total += facts.flops_done * step.stages[stage].mesh.size * times
    return total


def _programs(step: Step, compiled: Collection[str]) -> Iterator[tuple[str, Program]]:
    for stage in compiled:
        for label, program in stage_programs(step, stage).items():
            if program.is_compiled:
                yield f"{stage} {label}", program
    for link, boundary in step.boundaries.items():
        # Whatever has not been asked for, or failed, would be compiled here.
        for backward, transport in boundary.transports:
            for part, program in transport.programs.items():
                if program.is_compiled:
                    yield f"{link} {'backward' if backward else 'forward'} {part}", program
        for label, program in boundary.cut.programs.items() if boundary.cut is not None else ():
            if program.is_compiled:
                yield f"{link} {label}", program


def _needed(step: Step, compiled: Collection[str], packings: Packings) -> dict[str, int]:
    """Return the FLOPs that the forward and backward programs of stages need on each device."""
    needed = {}
    for stage, forward in forward_flops(step, compiled, packings).items():
        devices, factor = step.stages[stage].mesh.size, backward_factor(step, stage, packings)
        both = {"forward": 1, "backward": factor, "backward_input": 1, "backward_weight": max(0, factor - 1)}
        needed |= {f"{stage} {part}": round(times * forward / devices) for part, times in both.items()}
    return needed


class _Limits:
    """How large the arrays of each program may be."""

    def __init__(self, step: Step):
        self._step = step
        self._of_stage = functools.cache(lambda name: array_limits(step.stages[name], step.programs[name].inputs))

    def of(self, program: str) -> ArrayLimits:
        """Return those of a program, by the name of its stage or link and its own."""
        owner = program.partition(" ")[0]
        link = self._step.links.get(owner)
        ends = (owner,) if link is None else (link.source, link.destination)
        return joined([self._of_stage(name) for name in ends])


def _facts(name: str, program: Program, packing: Packing, limits: ArrayLimits) -> ProgramFacts:
    text = read_program(program.text)
    arrays = largest_arrays(text)
    # A loop whose length the text does not say counts once.
    products = matrix_products(text, loop_bound=1, packing=packing)
    return ProgramFacts(
        name=name,
        executable=id(program.compiled),
        call=call_bytes(program),
        flops_done=sum(each.flops * each.times for each in products.known if FURTHER_ROUNDS not in each.op_name),
        flops_needed=0,
        uncounted=sum(each.times for each in products.unknown),
        largest=tuple(
            LargeArray(each.bytes, str(each.shape), each.times, each.made_by[0][0], each.layer)
            for each in arrays[:LARGEST]
        ),
        oversized=tuple(
            OversizedArray(each.bytes, str(each.shape), each.layer, rule) for each, rule in limits.broken_by(arrays)
        ),
        collectives=tuple(_collectives(text, dict(program.mesh.shape))),
    )


def _collectives(text: ProgramText, axes: Mapping[str, int]) -> list[CollectiveUse]:
    """Return a program's collectives added up by kind, dtype, axes and overlap."""
    times: dict[tuple[str, str, str, bool], int] = {}
    sizes: dict[tuple[str, str, str, bool], int] = {}
    for each in collectives(text, loop_bound=1):
        if FURTHER_ROUNDS in each.op_name:
            continue
        key = (each.kind, "+".join(each.dtypes), "+".join(each.axes(axes)), each.overlaps)
        times[key] = times.get(key, 0) + each.times
        sizes[key] = sizes.get(key, 0) + each.times * each.result_bytes
    return sorted((CollectiveUse(*key, times[key], sizes[key]) for key in times), key=lambda use: -use.bytes)
