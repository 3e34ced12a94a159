"""Find an order by list scheduling: next comes the program that can start first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hetjax.schedule.actions import Kind, crossings, forward
from hetjax.schedule.filling import Filling, Order


def greedy(filling: Filling, *, ahead: int, patience: float) -> Order:
    """Order programs by when they can start: of those that can at once, the pipeline's first, then backwards.

    A program of an encoder is put before one of the pipeline only where that delays it by no more than
    `patience` of its own length, and its forwards run at most `ahead` microbatches ahead of their readers,
    except where nothing else can run.
    """
    free = [0.0] * (max(filling.kinds.values()) + 1)
    ended: dict[int, float] = {}
    done = [0] * len(filling.streams)
    order: Order = []
    while len(order) < len(filling.programs):
        heads = {s: places[done[s]] for s, places in enumerate(filling.streams) if done[s] < len(places)}
        starts = {
            stream: filling.programs[place].starts(free, ended)
            for stream, place in heads.items()
            if all(need in ended for need, _ in filling.programs[place].needs)
        }
        near = {s: when for s, when in starts.items() if not _is_far(filling, heads[s], ended, ahead)} or starts
        stream = _choose(filling, heads, near, patience)
        program = filling.programs[heads[stream]]
        for piece, start in zip(program.pieces, starts[stream], strict=True):
            for kind in piece:
                free[kind] = start + program.seconds
        ended[heads[stream]] = max(starts[stream]) + program.seconds
        done[stream] += 1
        order.append(stream)
    return order


def _is_far(filling: Filling, place: int, ended: Mapping[int, float], ahead: int) -> bool:
    """Return whether a program is an encoder's forward, more than `ahead` microbatches ahead of one of its readers."""
    action = filling.programs[place].action
    if action.kind is not Kind.FORWARD or place < sum(map(len, filling.pipeline)):
        return False
    for edge in filling.graph.outputs(action.stage):
        earlier = crossings(filling.graph, edge, action.microbatch)[0] - ahead
        if earlier >= 0 and filling.places[forward(edge.destination, earlier)] not in ended:
            return True
    return False


def _choose(filling: Filling, heads: Mapping[int, int], starts: Mapping[int, Sequence[float]], patience: float) -> int:
    """Return the stream whose next program comes next, of those with the given starts of its pieces."""
    pipeline = [stream for stream in starts if stream < len(filling.pipeline)]
    first = min(pipeline, key=lambda stream: (starts[stream], stream), default=None)
    options = []
    for stream in starts:
        program = filling.programs[heads[stream]]
        if stream in pipeline:
            continue
        busy = {
            kind: start + program.seconds
            for piece, start in zip(program.pieces, starts[stream], strict=True)
            for kind in piece
        }
        delays = (
            busy.get(kind, 0.0) - starts[other][0]
            for other in pipeline
            for piece in filling.programs[heads[other]].pieces
            for kind in piece
        )
        if first is None or max(delays, default=0.0) <= patience * program.seconds:
            options.append((min(starts[stream]), program.action.kind is Kind.FORWARD, stream))
    if first is None or (options and min(options)[0] < starts[first][0]):
        return min(options)[2]
    return first
