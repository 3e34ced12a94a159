"""The cases of the parity suite, and a sample of them that still covers every pair of choices."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from hetjax.meshes import Layout


class Case(NamedTuple):
    """One placement, schedule and number of microbatches.

    `shards` compares the batch shards of the encoder with those of the language model.
    """

    placement: str
    shards: str
    stages: int
    schedule: str
    microbatches: int

    def __str__(self) -> str:
        return f"{self.placement}-{self.shards}-{self.stages}stage-{self.schedule}-{self.microbatches}mb"


# {(placement, batch shards, llm stages): (vision layout, llm layout)}, all within 8 devices.
LAYOUTS = {
    ("disjoint", "more", 1): (Layout(devices="0-3", data=4), Layout(devices="4-7", data=2, tensor=2)),
    ("disjoint", "equal", 1): (Layout(devices="0-3", data=2, tensor=2), Layout(devices="4-7", data=2, tensor=2)),
    ("disjoint", "fewer", 1): (Layout(devices="0-3", data=2, tensor=2), Layout(devices="4-7", data=4)),
    ("disjoint", "more", 2): (Layout(devices="0-3", data=4), Layout(devices="4-7", stage=2, tensor=2)),
    ("disjoint", "equal", 2): (Layout(devices="0-3", data=2, tensor=2), Layout(devices="4-7", stage=2, data=2)),
    ("disjoint", "fewer", 2): (Layout(devices="0-1", tensor=2), Layout(devices="2-5", stage=2, data=2)),
    ("colocated", "more", 1): (Layout(data=8), Layout(data=4, tensor=2)),
    ("colocated", "equal", 1): (Layout(data=4, tensor=2), Layout(fsdp=4, context=2)),
    ("colocated", "fewer", 1): (Layout(data=2, tensor=4), Layout(data=4, tensor=2)),
    ("colocated", "more", 2): (Layout(data=8), Layout(stage=2, data=2, tensor=2)),
    ("colocated", "equal", 2): (Layout(data=4, tensor=2), Layout(stage=2, data=4)),
    ("colocated", "fewer", 2): (Layout(data=2, tensor=4), Layout(stage=2, data=2, fsdp=2)),
    ("homogeneous", "equal", 1): (Layout(data=4, tensor=2), Layout(data=4, tensor=2)),
    ("homogeneous", "equal", 2): (Layout(stage=2, data=2, tensor=2), Layout(stage=2, data=2, tensor=2)),
    ("overlapping", "more", 1): (Layout(devices="0-3", data=4), Layout(devices="2-5", data=2, tensor=2)),
    ("overlapping", "equal", 1): (Layout(devices="0-3", data=2, tensor=2), Layout(devices="3,2,4,5", data=2, tensor=2)),
    ("overlapping", "fewer", 1): (Layout(devices="0-3", data=2, tensor=2), Layout(devices="2-5", data=4)),
    ("overlapping", "more", 2): (Layout(devices="0-3", data=4), Layout(devices="2-5", stage=2, tensor=2)),
    ("overlapping", "equal", 2): (Layout(devices="0-3", data=2, tensor=2), Layout(devices="2-5", stage=2, data=2)),
    ("overlapping", "fewer", 2): (Layout(devices="0-3", tensor=4), Layout(devices="2-5", stage=2, data=2)),
}
SCHEDULES = ("gpipe", "1f1b", "colocated")
MICROBATCHES = (1, 4)


def applies(schedule: str, placement: str) -> bool:
    """The colocated schedule is for modules that share devices."""
    return schedule != "colocated" or placement != "disjoint"


ALL = tuple(
    Case(*layout, schedule, microbatches)
    for layout, microbatches, schedule in itertools.product(LAYOUTS, MICROBATCHES, SCHEDULES)
    if applies(schedule, layout[0])
)


def pairs_of(case: Case) -> set[tuple]:
    """Every pair of choices that a case makes."""
    return set(itertools.combinations(enumerate(case), 2))


def covering_sample(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """Few cases that make every pair of choices which any case makes: greedily the one with the most new pairs."""
    missing = set().union(*map(pairs_of, cases))
    chosen = []
    while missing:
        best = max(cases, key=lambda case: len(pairs_of(case) & missing))
        chosen.append(best)
        missing -= pairs_of(best)
    return tuple(chosen)
