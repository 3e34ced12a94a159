"""Reports on runs from numbers that are made up."""

from hetjax.fit.held import CallBytes, DeviceGroup, Moment
from hetjax.fit.program_facts import CollectiveUse, LargeArray, ProgramFacts
from hetjax.fit.report import FitReport, MeshNeed, reserve_bytes
from hetjax.meshes import find_hardware

GIB = 2**30
H100 = find_hardware("H100")

FACTS = ProgramFacts(
    name="llm backward",
    executable=1,
    call=CallBytes(7, 5),
    flops_done=20,
    flops_needed=10,
    uncounted=0,
    oversized=(),
    largest=(LargeArray(8 * GIB, "bf16[1,16,16384,16384]", 2, "broadcast", "layers/attention"),),
    collectives=(CollectiveUse("all-gather", "bf16", "tensor", True, 4, 400),),
)


def need(part: str, gib: float, *, stage: str = "llm", name: str = "llm", stages=("llm",), devices=(0, 1)) -> MeshNeed:
    """A mesh whose devices hold 10 GiB of master weights all step long, and at B0 so many GiB of a part."""
    held = {"master weights": 10 * GIB, part: round(gib * GIB)}
    before = Moment(stage=stage, action="F0", held={"master weights": 10 * GIB})
    group = DeviceGroup(stages=stages, devices=devices, moments=(before, Moment(stage=stage, action="B0", held=held)))
    return MeshNeed(name=name, group=group, reserve=reserve_bytes(H100), capacity=int(H100.memory_bytes))


def report(*meshes: MeshNeed, failed=None, compiled=("llm",), stages=("llm",), programs=(FACTS,)) -> FitReport:
    return FitReport(
        meshes=meshes, programs=programs, failed=failed or {}, kept={"llm": 1}, compiled=compiled, stages=stages
    )
