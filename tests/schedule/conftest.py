"""Stage graphs that every schedule must handle, and what the tests of schedules share."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import pytest

from hetjax.schedule import Costs, Kind, Schedule, StageEdge, StageGraph, StageNode, simulate

MICROBATCHES = (1, 2, 3, 4, 8)


def build_graph(
    names: Sequence[str], edges: Sequence[tuple[str, str]], frozen: Sequence[str] = (), devices: Mapping = {}
) -> StageGraph:
    """A graph from stage names ("llm", "llm.0"), pairs of them, and the names of frozen modules."""
    nodes: dict[str, StageNode] = {}
    for name in names:
        module, _, index = name.partition(".")
        trains = module not in frozen
        upstream = any(nodes[a].backward for a, b in edges if b == name)
        nodes[name] = StageNode(
            name=name,
            module=module,
            index=int(index or 0),
            backward=trains or upstream,
            update=trains,
            devices=devices.get(name, ()),
        )
    crossings = (StageEdge(name=f"{a}->{b}", source=a, destination=b, backward=nodes[a].backward) for a, b in edges)
    return StageGraph(stages=tuple(nodes.values()), edges=tuple(crossings))


def _fan_in(stages: int) -> StageGraph:
    llm = [f"llm.{index}" for index in range(stages)]
    edges = [("vision", llm[0]), ("audio", llm[0]), *itertools.pairwise(llm)]
    return build_graph(["vision", "audio", *llm], edges)


_LONG_ENCODER = (
    ["vision.0", "vision.1", "llm.0", "llm.1"],
    [("vision.0", "vision.1"), ("vision.1", "llm.0"), ("llm.0", "llm.1")],
)

GRAPHS: dict[str, Callable[[], StageGraph]] = {
    **{f"chain-{length}": lambda n=length: StageGraph.chain("abcd"[:n]) for length in (1, 2, 3, 4)},
    **{f"fan-in-{stages}": lambda n=stages: _fan_in(n) for stages in (1, 2, 3)},
    "long-encoder": lambda: build_graph(*_LONG_ENCODER),
    "frozen-encoder": lambda: build_graph(*_LONG_ENCODER, frozen=["vision"]),
    "frozen-llm": lambda: build_graph(*_LONG_ENCODER, frozen=["llm"]),
    "all-frozen": lambda: build_graph(*_LONG_ENCODER, frozen=["vision", "llm"]),
    "skip": lambda: build_graph(
        ["a", "b", "c", "d"], [("a", "b"), ("b", "c"), ("c", "d"), ("a", "d"), ("a", "c"), ("b", "d")]
    ),
    "uneven": lambda: build_graph(
        ["vision.0", "vision.1", "audio", "llm.0", "llm.1"],
        [("vision.0", "vision.1"), ("vision.1", "llm.0"), ("audio", "llm.1"), ("llm.0", "llm.1")],
    ),
    "shared-devices": lambda: build_graph(
        ["vision", "llm.0", "llm.1"],
        [("vision", "llm.0"), ("llm.0", "llm.1")],
        devices={"vision": (0, 1, 2, 3), "llm.0": (0, 1), "llm.1": (2, 3)},
    ),
}


@pytest.fixture(params=GRAPHS)
def graph(request) -> StageGraph:
    """Each graph of the grid."""
    return GRAPHS[request.param]()


@pytest.fixture(params=MICROBATCHES)
def microbatches(request) -> int:
    """Each number of microbatches of the grid."""
    return request.param


@pytest.fixture
def named_graph() -> Callable[[str], StageGraph]:
    """One graph of the grid by its name."""
    return lambda name: GRAPHS[name]()


@pytest.fixture
def picture() -> Callable[[Schedule], list[str]]:
    """The rows "F0 F1 .. B0" of a schedule whose programs all take one unit of time."""

    def rows(schedule: Schedule) -> list[str]:
        timeline = simulate(schedule, Costs(backward=1, update=0))
        cells = {stage.name: [".."] * int(timeline.makespan) for stage in schedule.graph.stages}
        for span in timeline.spans:
            if span.action.kind in (Kind.FORWARD, Kind.BACKWARD):
                cells[span.stage][int(span.start)] = str(span.action)
        return [" ".join(row) for row in cells.values()]

    return rows
