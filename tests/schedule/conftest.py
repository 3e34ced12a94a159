"""Stage graphs that every schedule must handle, and what the tests of schedules share."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import pytest

from hetjax.schedule import Costs, Kind, Schedule, StageEdge, StageGraph, StageNode, simulate

MICROBATCHES = (1, 2, 3, 4, 8)


def build_graph(
    names: Sequence[str],
    edges: Sequence[tuple[str, str]],
    frozen: Sequence[str] = (),
    devices: Mapping = {},
    independent: Sequence[str] = (),
) -> StageGraph:
    """A graph from stage names ("llm", "llm.0"), pairs of them, and the names of frozen and independent modules."""
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
            independent=module in independent,
        )
    crossings = (StageEdge(name=f"{a}->{b}", source=a, destination=b, backward=nodes[a].backward) for a, b in edges)
    return StageGraph(stages=tuple(nodes.values()), edges=tuple(crossings))


def _fan_in(stages: int) -> StageGraph:
    llm = [f"llm.{index}" for index in range(stages)]
    edges = [("vision", llm[0]), ("audio", llm[0]), *itertools.pairwise(llm)]
    return build_graph(["vision", "audio", *llm], edges)


def pipeline(stages: int, chunks: int = 1, encoders: Sequence[str] = (), **settings) -> StageGraph:
    """A language model dealt out over `stages` devices, with encoders on devices 10, 11, ... before it."""
    llm = [f"llm.{index}" for index in range(stages * chunks)]
    edges = [*((encoder, llm[0]) for encoder in encoders), *itertools.pairwise(llm)]
    devices = {name: (index % stages,) for index, name in enumerate(llm)}
    devices |= {name: (10 + index,) for index, name in enumerate(encoders)}
    return build_graph([*encoders, *llm], edges, devices=devices, **settings)


def shared(stages: int, *, chunks: int = 1, independent: bool = True, frozen: Sequence[str] = ()) -> StageGraph:
    """An encoder on all devices, and a language model on one device a mesh."""
    llm = [f"llm.{index}" for index in range(stages * chunks)]
    devices = {name: (index % stages,) for index, name in enumerate(llm)} | {"vision": tuple(range(stages))}
    alone = ["vision"] if independent else []
    chain = ["vision", *llm]
    return build_graph(chain, list(itertools.pairwise(chain)), frozen, devices, alone)


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
    "independent": lambda: shared(2),
    "independent-frozen": lambda: shared(3, frozen=["vision"]),
    "independent-chunks": lambda: shared(2, chunks=2),
    "independent-long": lambda: build_graph(
        ["vision.0", "vision.1", "audio", "llm.0", "llm.1"],
        [("vision.0", "vision.1"), ("vision.1", "llm.0"), ("audio", "llm.0"), ("llm.0", "llm.1")],
        devices={"vision.0": (0, 1), "vision.1": (2, 3), "audio": (0, 3), "llm.0": (0, 1), "llm.1": (2, 3)},
        independent=["vision", "audio"],
    ),
    "one-device": lambda: build_graph(
        ["vision", "llm"], [("vision", "llm")], devices={"vision": (0,), "llm": (0,)}, independent=["vision"]
    ),
    "overlapping": lambda: build_graph(
        ["vision", "audio", "llm.0", "llm.1"],
        [("vision", "llm.0"), ("audio", "llm.0"), ("llm.0", "llm.1")],
        devices={"vision": (0, 1, 2), "audio": (2, 3), "llm.0": (0, 1), "llm.1": (2, 3)},
    ),
    **{f"chunks-{p}x{v}": lambda p=p, v=v: pipeline(p, v) for p, v in ((1, 2), (2, 2), (3, 2), (2, 3))},
    "chunks-fan-in": lambda: pipeline(2, 2, ("vision", "audio")),
    "chunks-frozen-encoder": lambda: pipeline(2, 2, ("vision",), frozen=["vision"]),
    "chunks-long-encoder": lambda: build_graph(
        ["vision.0", "vision.1", "vision.2", "vision.3", *(f"llm.{i}" for i in range(4))],
        list(itertools.pairwise(["vision.0", "vision.1", "vision.2", "vision.3", *(f"llm.{i}" for i in range(4))])),
        devices={f"{name}.{i}": (2 * at + i % 2,) for at, name in enumerate(("vision", "llm")) for i in range(4)},
    ),
    "chunks-late-encoder": lambda: build_graph(
        ["llm.0", "llm.1", "audio", "llm.2", "llm.3"],
        [("llm.0", "llm.1"), ("llm.1", "llm.2"), ("audio", "llm.2"), ("llm.2", "llm.3")],
        devices={"audio": (5,)} | {f"llm.{i}": (i % 2,) for i in range(4)},
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


@pytest.fixture
def device_picture() -> Callable[[Schedule, Costs], list[str]]:
    """The rows of a schedule by device, where encoders are written in lower case."""

    def rows(schedule: Schedule, costs: Costs) -> list[str]:
        timeline, graph = simulate(schedule, costs), schedule.graph
        devices = dict.fromkeys(device for stage in graph.stages for device in graph.occupies(stage.name))
        cells = {device: [".."] * int(timeline.makespan) for device in devices}
        for span in timeline.spans:
            text = str(span.action)
            for device in () if span.action.kind is Kind.UPDATE else span.devices:
                language = graph.stage(span.stage).module == graph.sink.module
                for slot in range(int(span.start), int(span.end)):
                    cells[device][slot] = text if language else text.lower()
        return [" ".join(row) for row in cells.values()]

    return rows


@pytest.fixture
def make_pipeline() -> Callable[..., StageGraph]:
    """`pipeline(stages, chunks, encoders)`, for tests that need graphs of more sizes than the grid has."""
    return pipeline


@pytest.fixture
def make_shared() -> Callable[..., StageGraph]:
    """`shared(stages, chunks, independent, frozen)`, likewise."""
    return shared
