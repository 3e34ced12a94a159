"""A timeline as a trace for Perfetto or chrome://tracing."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hetjax.schedule.actions import Kind
from hetjax.schedule.simulate import Span, Timeline


def write_trace(timeline: Timeline, path: str | os.PathLike[str]) -> None:
    """Write a timeline, taken to be in seconds, as Chrome trace events (JSON; open it at ui.perfetto.dev).

    A process is a mesh; its first thread runs the programs, and each edge that leaves it has a thread for
    its transfers. Every span is one complete event ("X") with times in microseconds.
    """
    graph = timeline.schedule.graph
    processes = {stage.name: pid for pid, mesh in enumerate(graph.meshes) for stage in mesh}
    threads = {edge.name: tid for tid, edge in enumerate(graph.edges, start=1)}
    events = []
    for pid, mesh in enumerate(graph.meshes):
        where = f" on devices {', '.join(map(str, mesh[0].devices))}" if mesh[0].devices else ""
        events.append(_metadata("process_name", pid, 0, ", ".join(stage.name for stage in mesh) + where))
        events.append(_metadata("thread_name", pid, 0, "programs"))
    for pid, edge in sorted({(processes[s.stage], s.action.edge) for s in timeline.spans if s.action.edge}):
        events.append(_metadata("thread_name", pid, threads[edge], f"transfers {edge}"))
    events += [_complete(span, processes[span.stage], threads.get(span.action.edge, 0)) for span in timeline.spans]
    text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, indent=1)
    Path(path).write_text(text, encoding="utf-8")


def _metadata(name: str, pid: int, tid: int, value: str) -> dict:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "args": {"name": value}}


def _complete(span: Span, pid: int, tid: int) -> dict:
    action = span.action
    arguments = {"stage": action.stage, "microbatch": action.microbatch}
    if action.kind is Kind.TRANSFER:
        arguments |= {"edge": action.edge, "direction": "backward" if action.backward else "forward"}
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
