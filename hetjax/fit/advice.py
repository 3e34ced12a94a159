"""Why a run does not fit, and the usual ways out."""

from __future__ import annotations

from hetjax.fit.held import CROSSING, RESIDUALS, TEMPORARIES, Moment
from hetjax.fit.program_facts import OversizedArray
from hetjax.fit.report import FitReport, MeshNeed

GIB = 2**30
_MOST_OVERSIZED = 5
_WAYS_OUT = {
    "master weights": "divide them by a higher fsdp (or tensor, expert, stage), or freeze what need not train",
    "compute weights": "divide them by a higher tensor, expert or stage, or by fsdp",
    "gradients": "divide them by a higher fsdp (or tensor, expert, stage), or freeze what need not train",
    "optimizer state": "divide it by a higher fsdp (or tensor, expert, stage), or freeze what need not train",
    "buffers": "divide them by a higher tensor or stage",
    RESIDUALS: "let layers keep less (remat: {{{module}: full}} or dots), split the batch into more microbatches, "
    "take a schedule that keeps fewer of them alive (1f1b), or divide the sequence by a higher context",
    CROSSING: "split the batch into more microbatches, or divide it by a higher data, fsdp or context",
    TEMPORARIES: "split the batch into more microbatches, divide the sequence by a higher context or the layers by a "
    "higher tensor; in a backward also remat: {{{module}: full}}",
}


def verdict(report: FitReport) -> list[str]:
    """Return what a report comes to, in lines: that it fits and how well, or each culprit and what helps."""
    lines = [f"{task} does not compile: {why}" for task, why in report.failed.items()]
    lines += _oversized(report)
    missing = [name for name in report.stages if name not in report.compiled]
    if missing:
        lines.append(
            f"compiled: {', '.join(report.compiled) or 'nothing'}; of {', '.join(missing)} weights, gradients and "
            "optimizer state count, residuals and temporaries do not"
        )
    short = [mesh for mesh in report.meshes if not mesh.fits]
    if not short:
        fullest = report.fullest
        free = fullest.capacity - fullest.needed
        lines.append(
            f"{'what was compiled fits' if report.failed else 'fits'}: the fullest devices, those of {fullest.name}, "
            f"have {free / GIB:.1f} GiB to spare ({free / fullest.capacity:.0%})"
        )
        return lines
    told = set()
    for mesh in sorted(short, key=lambda mesh: -mesh.needed):
        # Meshes on the same devices share one reason.
        if mesh.group.stages not in told:
            told.add(mesh.group.stages)
            lines += _culprit(report, mesh)
    return lines


def _oversized(report: FitReport) -> list[str]:
    """Return a line for each array that no program should make, each shape in a layer once; the largest first."""
    found: dict[tuple[str, str], tuple[OversizedArray, str]] = {}
    for facts in report.programs:
        for each in facts.oversized:
            found.setdefault((each.array, each.layer), (each, facts.name))
    lines = []
    for array, program in sorted(found.values(), key=lambda each: -each[0].bytes)[:_MOST_OVERSIZED]:
        where = f", in {array.layer}" if array.layer else ""
        what = f"{array.array}, {array.bytes / GIB:.1f} GiB{where}"
        lines.append(f"warning: {program} makes {what}, larger than it should be: {array.rule}")
    if len(found) > len(lines):
        lines.append(f"warning: {len(found) - len(lines)} further arrays are larger than they should be")
    return lines


def _culprit(report: FitReport, mesh: MeshNeed) -> list[str]:
    peak = mesh.group.peak
    part = max(peak.held, key=lambda name: peak.held[name])
    lines = [
        f"does not fit: a device of {', '.join(mesh.group.stages)} needs {mesh.needed / GIB:.1f} GiB and has "
        f"{mesh.capacity / GIB:.1f}; the most at {peak.action} of {peak.stage}, {peak.held[part] / GIB:.1f} GiB of it "
        f"{part}"
    ]
    if part == TEMPORARIES:
        largest = [
            (array, facts.name)
            for facts in report.programs
            if facts.name.partition(" ")[0] == peak.stage
            for array in facts.largest
        ]
        if largest:
            array, program = max(largest)
            where = f" in {array.layer}" if array.layer else ""
            lines.append(
                f"  the largest array of its programs: {array.array}, {array.bytes / GIB:.1f} GiB, {program}{where}"
            )
    others = _also_too_large(mesh)
    if others:
        lines.append(f"  too much too: {', '.join(others)}")
    module = peak.stage.partition(".")[0]
    lines.append(f"  ways out: {_WAYS_OUT[part].format(module=module)}")
    waiting = _waiting_modules(report, mesh)
    if waiting:
        lines.append(f"  or keep what waits meanwhile in the memory of the host: offload: [{', '.join(waiting)}]")
    return lines


def _waiting_modules(report: FitReport, mesh: MeshNeed) -> list[str]:
    """Return the encoders that wait on the mesh's devices while the module of the loss needs the most."""
    sink = report.stages[-1].partition(".")[0]
    if mesh.group.host or mesh.group.peak.stage.partition(".")[0] != sink:
        return []
    modules = dict.fromkeys(stage.partition(".")[0] for stage in mesh.group.stages)
    return [module for module in modules if module != sink]


def _also_too_large(mesh: MeshNeed) -> list[str]:
    """Return the programs, apart from that of the peak, whose own memory is too much for what else is held then."""
    free, peak = mesh.capacity - mesh.reserve, mesh.group.peak
    most: dict[tuple[str, str], Moment] = {}
    for moment in mesh.group.moments:
        if moment.total > free >= moment.total - moment.held.get(TEMPORARIES, 0):
            program = (moment.action.rstrip("0123456789"), moment.stage)
            most[program] = max(most.get(program, moment), moment, key=lambda each: each.total)
    most.pop((peak.action.rstrip("0123456789"), peak.stage), None)
    found = sorted(most.values(), key=lambda moment: -moment.total)
    return [f"{each.action} of {each.stage} ({(each.total + mesh.reserve) / GIB:.1f} GiB)" for each in found]
