"""The report on a run's memory as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType

from hetjax.execution.flops import Packings
from hetjax.fit.advice import verdict
from hetjax.fit.held import PARTS
from hetjax.fit.program_facts import LARGEST, ProgramFacts
from hetjax.fit.report import FitReport, MeshNeed
from hetjax.meshes import format_devices
from hetjax.tools.tables import NumberTable
from hetjax.training.display import format_bytes

_MOST_COLLECTIVES = 15
_MOST_GROUPS = 6


def tables(report: FitReport) -> Iterator[RenderableType]:
    """Yield the report from memory to collectives, and last what it comes to."""
    yield _memory(report)
    yield f"kept alive at once, in microbatches: {_kept(report)}"
    alike = _alike(report.programs)
    yield _programs(alike)
    yield from _assumed(report.packings)
    yield _largest(alike)
    if any(facts.collectives for _, facts in alike):
        yield _collectives(alike)
    yield from verdict(report)


def _memory(report: FitReport) -> NumberTable:
    """Return a column for each group of devices that are some mesh's fullest, the fullest first."""
    by_need = sorted(report.meshes, key=lambda mesh: -mesh.needed)
    groups = list({mesh.group.stages: mesh for mesh in by_need}.values())
    shown = groups[:_MOST_GROUPS]
    peaks = [mesh.group.peak for mesh in shown]
    rows = [(part, *(format_bytes(peak.held.get(part, 0)) for peak in peaks)) for part in PARTS]
    rows += [
        ("reserve", *(format_bytes(mesh.reserve) for mesh in shown)),
        (),
        ("sum", *(format_bytes(mesh.needed) for mesh in shown)),
        ("the device has", *(format_bytes(mesh.capacity) for mesh in shown)),
        ("most at", *(f"{peak.action} of {peak.stage}" for peak in peaks)),
    ]
    if any(mesh.group.host for mesh in shown):
        rows.append(("in the host's memory, at most", *(format_bytes(mesh.group.host) for mesh in shown)))
    left = f"; {len(groups) - len(shown)} further groups need less" if len(groups) > len(shown) else ""
    return NumberTable(
        title=f"memory of a device when it holds the most{left}",
        texts=("stages on the device",),
        numbers=[_heading(mesh) for mesh in shown],
        rows=rows,
    )


def _heading(mesh: MeshNeed) -> str:
    devices = format_devices([int(device) for device in mesh.group.devices])
    return f"{', '.join(mesh.group.stages)} ({devices})"


def _assumed(packings: Packings) -> Iterator[str]:
    for module, packing in packings.items():
        parts = " and ".join(f"{part.longest:,} of {part.positions:,} positions" for part in packing)
        yield f"products of {module} are counted for segments of attention as long as the settings allow: {parts}"


def _kept(report: FitReport) -> str:
    return ", ".join(f"{stage} {count}" for stage, count in report.kept.items() if count) or "none"


def _alike(programs: Sequence[ProgramFacts]) -> list[tuple[str, ProgramFacts]]:
    """Return programs under one name where they are the same executable."""
    groups: dict[int, list[ProgramFacts]] = {}
    for facts in programs:
        groups.setdefault(facts.executable, []).append(facts)
    named = []
    for group in groups.values():
        more = f" and {len(group) - 1} alike" if len(group) > 1 else ""
        named.append((f"{group[0].name}{more}", group[0]))
    return named


def _programs(alike: Sequence[tuple[str, ProgramFacts]]) -> NumberTable:
    """Return those that multiply, or take a hundredth of the memory that the largest takes."""
    least = max((facts.call.total for _, facts in alike), default=0) / 100
    rows = []
    for name, facts in alike:
        done, needed = facts.flops_done, facts.flops_needed
        if needed or facts.call.total >= least:
            more = " and unknown kernels" if facts.uncounted else ""
            ratio = f"{done / needed:.2f}{more}" if needed else ""
            call = facts.call
            sizes = format_bytes(call.temporary), format_bytes(call.fresh)
            rows.append((name, *sizes, _flops(done), _flops(needed) if needed else "", ratio))
    return NumberTable(
        title="programs, on a device",
        texts=("program",),
        numbers=("temporaries", "new outputs", "products done", "products needed", "done / needed"),
        rows=rows,
    )


def _largest(alike: Sequence[tuple[str, ProgramFacts]]) -> NumberTable:
    arrays = sorted(((array, name) for name, facts in alike for array in facts.largest), reverse=True)[:LARGEST]
    return NumberTable(
        title="largest arrays that programs make on a device",
        texts=("array", "program", "layer", "made by"),
        numbers=("size", "times"),
        rows=[
            (array.array, name, array.layer, array.made_by, format_bytes(array.bytes), f"{array.times:,}")
            for array, name in arrays
        ],
    )


def _collectives(alike: Sequence[tuple[str, ProgramFacts]]) -> NumberTable:
    uses = sorted(((use, name) for name, facts in alike for use in facts.collectives), key=lambda each: -each[0].bytes)
    rows = [
        (
            name,
            use.kind,
            use.dtype,
            use.axes or "none",
            "yes" if use.overlaps else "no",
            f"{use.times:,}",
            format_bytes(use.bytes),
        )
        for use, name in uses[:_MOST_COLLECTIVES]
    ]
    left = f", the {_MOST_COLLECTIVES} of {len(uses)} with the most bytes" if len(uses) > _MOST_COLLECTIVES else ""
    return NumberTable(
        title=f"collectives of a call{left}",
        texts=("program", "kind", "dtype", "axes", "overlaps"),
        numbers=("times", "bytes a device"),
        rows=rows,
    )


def _flops(count: float) -> str:
    """Return FLOPs in the largest unit that leaves 1 or more: 2.5e12 -> "2.5 TFLOP"."""
    for unit in ("FLOP", "KFLOP", "MFLOP", "GFLOP", "TFLOP"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} PFLOP"
