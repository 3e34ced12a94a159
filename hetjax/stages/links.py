"""The links between stages: along the edges of the module graph, and inside the modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hetjax.errors import GraphError
from hetjax.graph import Edge, ModuleGraph, input_ports, port_of
from hetjax.schedule.graph import StageEdge, StageGraph, StageNode
from hetjax.stages.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """A tensor that one stage hands to another: along an edge of the graph, or inside a module.

    Attributes:
        name: "source.port->destination.port", for schedules and messages.
        source, source_port: the stage that makes it, and its output port.
        destination, destination_port: the stage that reads it, and its input port.
        gradient: whether a gradient comes back: something upstream trains, one arrives at the destination, and the
            edge lets it through.
    """

    name: str
    source: str
    source_port: str
    destination: str
    destination_port: str
    gradient: bool


def make_links(graph: ModuleGraph, stages: Sequence[Stage]) -> tuple[Link, ...]:
    """Return the links of all edges, and those that pass a module's own tensors from stage to stage.

    An edge leads from the stage that makes its tensor to every stage that takes it.

    Raises GraphError when a module trains that no gradient reaches, and for an edge that no stage takes, that several
    or none make, or without which a stage would make nothing that is read.
    """
    _check_taken(graph, stages)
    links: list[Link] = []
    for stage in stages:
        for edge in graph.inputs(stage.module):
            port = port_of(edge.destination).name
            if port in stage.inputs:
                maker = _maker(edge, stages)
                gradient = edge.gradient and learns(maker, links)
                links.append(_link(maker, port_of(edge.source).name, stage, port, gradient))
        if stage.index > 0:
            before = stages[stages.index(stage) - 1]
            for port in sorted(set(stage.inputs) - set(input_ports(graph.abstract(stage.module)))):
                links.append(_link(before, port, stage, port, learns(before, links)))
    return _pruned(links, stages)


def _check_taken(graph: ModuleGraph, stages: Sequence[Stage]) -> None:
    """Raise GraphError for an edge whose tensor no stage of its destination takes."""
    for edge in graph.edges:
        module, port = dataclasses.astuple(port_of(edge.destination))
        parts = [stage for stage in stages if stage.module == module]
        if not any(port in part.inputs for part in parts):
            raise GraphError(
                f"edge {edge.name}: '{port}' is among the input_ports of module '{module}', but none of its "
                f"{len(parts)} parts takes it; have stage(index, count) list it in the input_ports of the parts whose "
                "layers read it"
            )


def _maker(edge: Edge, stages: Sequence[Stage]) -> Stage:
    """Return the stage that makes an edge's tensor: the one that says so, or the last of its module."""
    module, port = dataclasses.astuple(port_of(edge.source))
    parts = [stage for stage in stages if stage.module == module]
    if all(part.output_ports is None for part in parts):
        return parts[-1]
    makers = [part for part in parts if port in (part.output_ports or ())]
    if len(makers) != 1:
        listed = ", ".join(part.name for part in makers) or "none"
        raise GraphError(
            f"edge {edge.name}: of the parts of module '{module}' {listed} have '{port}' in output_ports; have "
            "stage(index, count) list it in those of the one part that makes it"
        )
    return makers[0]


def _pruned(links: Sequence[Link], stages: Sequence[Stage]) -> tuple[Link, ...]:
    """The links, with a gradient only where one arrives at the destination: from the losses, backwards."""
    reached = {stage.name for stage in stages if stage.loss_weight is not None}
    for stage in reversed(stages):
        if stage.name in reached:
            continue
        leaving = [link for link in links if link.source == stage.name]
        if not leaving:
            raise GraphError(
                f"module '{stage.module}': nothing reads what its stage {stage.name} makes; add an edge from an output "
                "of that stage, or give the module fewer stages or layers"
            )
        if any(link.gradient and link.destination in reached for link in leaving):
            reached.add(stage.name)
        elif stage.trains:
            raise GraphError(
                f"module '{stage.module}' trains, but no gradient reaches it, as no edge from it lets one through "
                f"({', '.join(link.name for link in leaving)}); give one gradient=True or freeze '{stage.module}'"
            )
    return tuple(dataclasses.replace(link, gradient=link.gradient and link.destination in reached) for link in links)


def learns(stage: Stage, links: Sequence[Link]) -> bool:
    """Return whether the stage, or anything that gets gradients through it, trains; `links` hold all that end in it."""
    return stage.trains or any(link.gradient for link in links if link.destination == stage.name)


def _link(source: Stage, source_port: str, destination: Stage, destination_port: str, gradient: bool) -> Link:
    return Link(
        name=f"{source.name}.{source_port}->{destination.name}.{destination_port}",
        source=source.name,
        source_port=source_port,
        destination=destination.name,
        destination_port=destination_port,
        gradient=gradient,
    )


def stage_graph(stages: Sequence[Stage], links: Sequence[Link]) -> StageGraph:
    """Return the stages and links in the form that schedules are made for."""
    by_name = {stage.name: stage for stage in stages}
    return StageGraph(
        stages=tuple(
            StageNode(
                name=stage.name,
                module=stage.module,
                index=stage.index,
                backward=learns(stage, links),
                update=stage.trains,
                devices=tuple(device.id for device in stage.mesh.devices.flat),
                # The sum of the loss is one over all devices, in every microbatch.
                independent=stage.independent_devices and stage.loss_weight is None,
                window=stage.window.size,
                loss=stage.loss_weight is not None,
            )
            for stage in stages
        ),
        edges=tuple(
            StageEdge(
                name=link.name,
                source=link.source,
                destination=link.destination,
                backward=link.gradient,
                at_once=_cross_together(by_name[link.source], by_name[link.destination]),
            )
            for link in links
        ),
    )


def _cross_together(source: Stage, destination: Stage) -> bool:
    """Whether the microbatches of a window had better cross together.

    Between processes a transfer is one program of both meshes, so that the destination would wait for whatever the
    source runs when the next one is needed.
    """
    if source.window == destination.window:
        return False
    devices = [device for stage in (source, destination) for device in stage.mesh.devices.flat]
    return len({device.process_index for device in devices}) > 1
