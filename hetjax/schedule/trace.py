"""Write a timeline as a trace for Perfetto or chrome://tracing."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hetjax.schedule.actions import HOST_COPIES, Kind
from hetjax.schedule.graph import StageGraph
from hetjax.schedule.lanes import lanes
from hetjax.schedule.simulate import Span, Timeline

TraceEvent = dict[str, str | int | float | dict[str, str | int | None]]
"""One event of the Trace Event Format, as it stands in the file."""


def write_trace(timeline: Timeline, path: str | os.PathLike[str]) -> None:
    """Write a timeline in seconds as Chrome trace events (JSON; open it at ui.perfetto.dev).

    A process is a lane: a mesh, or devices that act alike. Its first thread runs the programs, and each edge
    that leaves a stage whose first lane it is has a thread for its transfers; host copies of such stages have one more
    for each direction. Every span is one complete event ("X") in each of its lanes, with times in microseconds.
    """
    graph = timeline.schedule.graph
    found = lanes(timeline)
    threads = {edge.name: tid for tid, edge in enumerate(graph.edges, start=1)}
    first = {stage.name: next(pid for pid, lane in enumerate(found) if stage in lane.stages) for stage in graph.stages}
    events = []
    for pid, lane in enumerate(found):
        where = f" on devices {', '.join(map(str, lane.device_ids))}" if lane.device_ids else ""
        events.append(_metadata("process_name", pid, 0, f"{lane}{where}"))
        events.append(_metadata("thread_name", pid, 0, "programs"))
    for pid, edge in sorted({(first[s.stage], s.action.edge) for s in timeline.spans if s.action.edge}):
        events.append(_metadata("thread_name", pid, threads[edge], f"transfers {edge}"))
    copies = {kind: len(threads) + place for place, kind in enumerate(sorted(HOST_COPIES, key=str), start=1)}
    for pid, kind in sorted(
        {(first[s.stage], s.action.kind) for s in timeline.spans if s.action.kind in copies}, key=str
    ):
        events.append(_metadata("thread_name", pid, copies[kind], f"{kind.value} (host copies)"))
    for span in timeline.spans:
        if span.action.kind is Kind.TRANSFER:
            events.append(_complete(graph, span, first[span.stage], threads[span.action.edge]))
        elif span.action.kind in copies:
            events.append(_complete(graph, span, first[span.stage], copies[span.action.kind]))
        else:
            events += [_complete(graph, span, pid, 0) for pid, lane in enumerate(found) if lane.shows(span)]
    text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, indent=1)
    Path(path).write_text(text, encoding="utf-8")


def _metadata(name: str, pid: int, tid: int, value: str) -> TraceEvent:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "args": {"name": value}}


def _complete(graph: StageGraph, span: Span, pid: int, tid: int) -> TraceEvent:
    action = span.action
    arguments = {"stage": action.stage, "microbatch": action.microbatch}
    if action.kind is Kind.TRANSFER:
        arguments |= {"edge": action.edge, "direction": "backward" if action.backward else "forward"}
    elif action.microbatch is not None and graph.stage(action.stage).window > 1:
        arguments["window"] = graph.stage(action.stage).window
    if action.kind in HOST_COPIES:
        arguments["part"] = action.part.value
    return {
        "ph": "X",
        "name": str(action) if action.kind is Kind.TRANSFER else f"{action.stage} {action}",
        "cat": action.kind.value,
        "pid": pid,
        "tid": tid,
        "ts": span.start * 1e6,
        "dur": (span.end - span.start) * 1e6,
        "args": arguments,
    }
