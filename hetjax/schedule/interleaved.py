"""Interleaved 1F1B: each mesh of a module holds several short stages, so that a pipeline fills sooner."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from hetjax.errors import ScheduleError
from hetjax.schedule.actions import Action, Kind, backward, crossings, forward
from hetjax.schedule.builder import schedule_builder
from hetjax.schedule.gpipe import backwards, forwards
from hetjax.schedule.graph import StageGraph, StageNode
from hetjax.schedule.one_f_one_b import forwards_ahead, one_f_one_b
from hetjax.schedule.order import LocalOrders, total_order


@schedule_builder("interleaved_1f1b", summary="1F1B over several shorter stages on each mesh")
def interleaved_1f1b(graph: StageGraph, microbatches: int) -> tuple[Action, ...]:
    """Run 1F1B on modules with p meshes and v *chunks* a mesh: stages 0 ... p v - 1, stage k on mesh k mod p.

    A mesh takes up its chunks in turn, p microbatches of each: forwards from its first chunk on, backwards from
    its last chunk on. Mesh r warms up with 2 (p - 1 - r) + (v - 1) p + 1 of these forwards, and then
    takes turns: one backward, one forward. Two meshes with two chunks each (llm.0 and llm.2 on one, llm.1 and
    llm.3 on the other), four microbatches, with programs of equal length:

        llm.0  F0 F1 .. .. F2 .. F3 .. .. B0 .. B1 .. .. .. .. B2 B3
        llm.1  .. F0 F1 .. .. .. .. F2 B0 F3 B1 .. .. .. .. B2 B3 ..
        llm.2  .. .. F0 F1 .. B0 .. B1 F2 .. F3 .. .. B2 .. B3 .. ..
        llm.3  .. .. .. F0 B0 F1 B1 .. .. .. .. F2 B2 F3 B3 .. .. ..

    The idle share of p equal meshes with m >= p microbatches is (p - 1) / (v m + p - 1), at the price of v
    times as many transfers. Where p does not divide m, the first turn of a chunk takes the rest as well, so
    p + m mod p microbatches. With m < p a turn has only m, and the share is 1 - v m / (v p + m - 1).

    A module with one chunk a mesh is scheduled as by 1F1B, and so is the whole of a graph without chunks. A stage
    that feeds a module with chunks runs one microbatch ahead of what its readers have in flight.

    Peak of live microbatches: that of 1F1B with one chunk a mesh; on mesh r, of all chunks together, at most
    2 (p - 1 - r) + (v - 1) p + 1 where p divides m, each of a stage that is 1/v as long.

    Reference: Narayanan et al., arXiv:2104.04473 (the
    interleaved schedule).

    Raises:
        ScheduleError: fewer than one microbatch, or a module with several stages a mesh where they do not
            come around in turn.
    """
    local: dict[str, tuple[Action, ...]] = {}
    for module in dict.fromkeys(stage.module for stage in reversed(graph.stages)):
        own = [stage for stage in graph.stages if stage.module == module]
        meshes = _meshes(graph, own)
        if len(meshes) < len(own):
            local |= _chunked(graph, meshes, local, microbatches)
        else:
            for stage in reversed(own):
                local[stage.name] = _single(graph, stage, local, microbatches)
    # In the graph's order, so that with one chunk a mesh the total order is that of 1F1B.
    ordered = {stage.name: local[stage.name] for stage in graph.stages if stage.name in local}
    return total_order(graph, microbatches, ordered, ahead=forwards_ahead(graph))


def _meshes(graph: StageGraph, own: Sequence[StageNode]) -> list[list[StageNode]]:
    """Return the stages of one module by mesh: its chunks, in order."""
    meshes: dict[tuple[Hashable, ...], list[StageNode]] = {}
    for stage in own:
        meshes.setdefault(graph.occupies(stage.name), []).append(stage)
    found = list(meshes.values())
    for index, stage in enumerate(own):
        wanted = found[index % len(found)]
        if len(own) % len(found) or stage not in wanted:
            raise ScheduleError(
                f"{interleaved_1f1b.name}: module {stage.module!r} has {len(own)} stages on p={len(found)} meshes; it "
                f"takes v*p of them, stage k on mesh k mod p, but stage {stage.name!r} is on devices "
                f"{graph.occupies(stage.name)}; deal the stages out in turn or use '{one_f_one_b.name}'"
            )
    return found


def _single(graph: StageGraph, stage: StageNode, local: LocalOrders, microbatches: int) -> tuple[Action, ...]:
    """Return the order on a stage with its own mesh: before each backward it is one forward ahead of its readers."""
    ahead = [_ahead(graph, stage, local, index, microbatches) for index in range(microbatches // stage.window)]
    return _merge(forwards(stage, microbatches), backwards(stage, microbatches), ahead)


def _chunked(
    graph: StageGraph, meshes: list[list[StageNode]], local: LocalOrders, microbatches: int
) -> dict[str, tuple[Action, ...]]:
    """Return the orders on all meshes of a module with chunks, by the name of each mesh's first stage."""
    count, chunks = len(meshes), len(meshes[0])
    own = graph.count(meshes[0][0].name, microbatches)
    turns = _turns(count, own)
    orders = {}
    # The shortest warm-up with which the module is ahead of what reads it.
    for extra in range(chunks * own + 1):
        for rank, mesh in enumerate(meshes):
            ahead = [(chunk, index) for turn in turns for chunk in mesh for index in turn]
            back = [(chunk, index) for turn in turns for chunk in reversed(mesh) for index in turn]
            warm_up = 2 * (count - 1 - rank) + (chunks - 1) * len(turns[0]) + extra
            orders[mesh[0].name] = _merge(
                [forward(chunk.name, index) for chunk, index in ahead],
                [backward(chunk.name, index) for chunk, index in back if chunk.backward],
                [warm_up + place + 1 for place, (chunk, _) in enumerate(back) if chunk.backward],
            )
        if all(_leads(graph, stage, orders[mesh[0].name], local, microbatches) for mesh in meshes for stage in mesh):
            break
    return orders


def _turns(meshes: int, microbatches: int) -> list[range]:
    """Return the microbatches that a chunk runs in each turn: as many as there are meshes, and the rest in the first.

    A turn shorter than the number of meshes would have to wait for itself to come around.
    """
    first = min(microbatches, meshes + microbatches % meshes)
    return [range(first), *(range(start, start + meshes) for start in range(first, microbatches, meshes))]


def _merge(ahead: Sequence[Action], back: Sequence[Action], before: Sequence[int]) -> tuple[Action, ...]:
    """Merge forwards and backwards into one order, with at least `before[i]` forwards ahead of the i-th backward."""
    order: list[Action] = []
    run = 0
    for action, least in zip(back, before, strict=False):
        order += ahead[run:least]
        run = max(run, least)
        order.append(action)
    return (*order, *ahead[run:])


def _ahead(graph: StageGraph, stage: StageNode, local: LocalOrders, index: int, microbatches: int) -> int:
    """Return how many forwards a stage has to run before the backward of a microbatch: one more than its readers do."""
    needed = [index + 1]
    for edge in graph.outputs(stage.name):
        if edge.backward:
            read = _forwards_before(local, edge.destination, crossings(graph, edge, index)[-1])
            needed.append(-(-read // graph.ratio(edge)) + 1)
    return min(graph.count(stage.name, microbatches), max(needed))


def _leads(graph: StageGraph, stage: StageNode, order: Sequence[Action], local: LocalOrders, microbatches: int) -> bool:
    """Return whether a stage of a module with chunks is ahead of its readers in other modules."""
    if not stage.backward:
        return True
    own = {stage.name: order}
    return all(
        _forwards_before(own, stage.name, index) >= _ahead(graph, stage, local, index, microbatches)
        for index in range(graph.count(stage.name, microbatches))
    )


def _forwards_before(local: LocalOrders, stage: str, index: int) -> int:
    """Return how many forwards of a stage come before its backward of a microbatch; 0 without an order for it yet."""
    for order in local.values():
        if backward(stage, index) in order:
            before = order[: order.index(backward(stage, index))]
            return sum(action.kind is Kind.FORWARD and action.stage == stage for action in before)
    return 0
