"""The lanes of a timeline: groups of devices that run one program at a time, each shown in one row."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from hetjax.schedule.graph import StageNode
from hetjax.schedule.simulate import Span, Timeline


@dataclass(frozen=True, kw_only=True)
class Lane:
    """Devices that act alike, and the stages that run on them."""

    stages: tuple[StageNode, ...]
    devices: tuple[Hashable, ...]

    def __str__(self) -> str:
        return ", ".join(stage.name for stage in self.stages)

    @property
    def device_ids(self) -> tuple[int, ...]:
        """Return the device numbers; none where the stages were given without devices."""
        return self.devices if self.stages[0].devices else ()

    def shows(self, span: Span) -> bool:
        """Return whether a span ran on the devices of this lane."""
        return span.stage in {stage.name for stage in self.stages} and not set(span.devices).isdisjoint(self.devices)


def lanes(timeline: Timeline) -> tuple[Lane, ...]:
    """Return the lanes of a timeline.

    One for each mesh where every program runs on the whole of its mesh at once; else one for devices that act alike.

    Meshes that overlap have a lane each. Lanes of devices never overlap, and a program is in all of its lanes.
    """
    graph = timeline.schedule.graph
    programs = [span for span in timeline.spans if span.devices]
    if all(set(span.devices) == set(graph.occupies(span.stage)) for span in programs):
        return tuple(Lane(stages=mesh, devices=graph.occupies(mesh[0].name)) for mesh in graph.meshes)
    devices = dict.fromkeys(device for stage in graph.stages for device in graph.occupies(stage.name))
    alike: dict[tuple[int, ...], list[Hashable]] = {}
    for device in devices:
        ran = tuple(index for index, span in enumerate(programs) if device in span.devices)
        alike.setdefault(ran, []).append(device)
    return tuple(
        Lane(
            stages=tuple(stage for stage in graph.stages if group[0] in graph.occupies(stage.name)),
            devices=tuple(group),
        )
        for group in alike.values()
    )
