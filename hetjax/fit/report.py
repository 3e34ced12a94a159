"""The report on a run's memory: what each mesh needs of its devices, and whether they have it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from hetjax.execution.flops import Packings
from hetjax.fit.held import CROSSING, PERSISTENT, RESIDUALS, TEMPORARIES, DeviceGroup
from hetjax.fit.program_facts import ProgramFacts
from hetjax.meshes import Hardware
from hetjax.schedule import Schedule

FIXED_RESERVE = 2 * 2**30
RESERVED_SHARE = 0.02


def reserve_bytes(hardware: Hardware) -> int:
    """Return the bytes of a device that the report keeps free, since no compiler tells them.

    2 GiB for the CUDA context with its libraries and kernels, NCCL's buffers and cuDNN's workspace, and 2 % of the
    memory for fragmentation. These are assumptions: a run on GPUs logs what it really took beside the report's sum.
    """
    return FIXED_RESERVE + round(RESERVED_SHARE * hardware.memory_bytes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshNeed:
    """What a mesh needs of its fullest devices, where stages of other meshes may lie, too.

    Attributes:
        name: the stages on the mesh, joined by ", ".
        group: its fullest devices, through a step.
        reserve, capacity: bytes that are kept free, and those of the device.
    """

    name: str
    group: DeviceGroup
    reserve: int
    capacity: int

    @property
    def needed(self) -> int:
        """The bytes held at the peak, and the reserve."""
        return self.group.peak.total + self.reserve

    @property
    def fits(self) -> bool:
        """Whether the device has them."""
        return self.needed <= self.capacity

    def numbers(self) -> dict[str, int]:
        """Return the report's numbers; the peak is the sum of the three parts at that moment and the reserve.

        The host's bytes are the most that it holds for a device, at any moment.
        """
        held = self.group.peak.held
        return {
            "peak_bytes": self.needed,
            "persistent_bytes": sum(held.get(part, 0) for part in PERSISTENT),
            "residual_bytes": held.get(RESIDUALS, 0) + held.get(CROSSING, 0),
            "temporary_bytes": held.get(TEMPORARIES, 0),
            "capacity_bytes": self.capacity,
            "host_bytes": self.group.host,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitReport:
    """Whether a run fits its devices.

    Attributes:
        meshes: what each mesh needs.
        programs: the facts of the programs that were compiled.
        failed: why a program did not compile, by the name of its task.
        kept: the most microbatches alive on each stage.
        compiled: the stages whose programs were compiled; of others only what lasts all step is counted.
        stages: all stages.
        packings: the segments that are assumed in counts of products, by module.
    """

    meshes: Sequence[MeshNeed]
    programs: Sequence[ProgramFacts]
    failed: Mapping[str, str]
    kept: Mapping[str, int]
    compiled: Sequence[str]
    stages: Sequence[str]
    packings: Packings = dataclasses.field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether everything compiled, and every mesh fits."""
        return not self.failed and all(mesh.fits for mesh in self.meshes)

    @property
    def fullest(self) -> MeshNeed:
        """The mesh that needs the largest share of its devices."""
        return max(self.meshes, key=lambda mesh: mesh.needed / mesh.capacity)

    def numbers(self) -> dict[str, object]:
        """Return the report as values that `json.dumps` takes; docs/targets.md says what each means."""
        return {
            "fits": self.fits,
            "meshes": {mesh.name: mesh.numbers() for mesh in self.meshes},
            "programs": {
                facts.name: {
                    "flops_done": facts.flops_done,
                    "flops_needed": facts.flops_needed,
                    "temporary_bytes": facts.call.temporary,
                    "largest": [each._asdict() for each in facts.largest],
                    "oversized": [each._asdict() for each in facts.oversized],
                    "collectives": [each._asdict() for each in facts.collectives],
                }
                for facts in self.programs
            },
        }


def mesh_needs(
    schedule: Schedule, groups: Sequence[DeviceGroup], hardware: Hardware, stages: Sequence[str]
) -> list[MeshNeed]:
    """Return what each mesh that has one of these stages needs of its fullest devices."""
    found = []
    for mesh in schedule.graph.meshes:
        names = [stage.name for stage in mesh]
        if set(names) & set(stages):
            fullest = max(
                (group for group in groups if set(names) <= set(group.stages)), key=lambda group: group.peak.total
            )
            found.append(
                MeshNeed(
                    name=", ".join(names),
                    group=fullest,
                    reserve=reserve_bytes(hardware),
                    capacity=int(hardware.memory_bytes),
                )
            )
    return found
