"""How busy the devices are: the FLOPs that steps need against those that devices can do, and idle shares by module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping

from hetjax.execution.action_timer import ActionTimer
from hetjax.execution.flops import Packings, model_flops
from hetjax.meshes.hardware import find_hardware
from hetjax.schedule import StageGraph
from hetjax.schedule.actions import HOST_COPIES, Kind
from hetjax.stages.batch import Batch
from hetjax.trainer import Trainer
from hetjax.training.memory import devices_used
from hetjax.training.metrics import StepMetrics


class Utilisation:
    """Counts the FLOPs of steps, once for each shape of a batch, and what they are of the devices' peak.

    Args:
        trainer: the trainer, compiled.
        packings: by module, the segments that are assumed in a row.
    """

    def __init__(self, trainer: Trainer, packings: Packings):
        self._trainer = trainer
        self._flops = {id(step): model_flops(step, packings) for step in trainer.compiled_steps}
        kinds = [find_hardware(device.device_kind) for device in devices_used(trainer)]
        self._peak = None if None in kinds else sum(kind.bfloat16_flops for kind in kinds)

    def flops(self, batch: Batch) -> int:
        """Return the FLOPs that a step on a batch needs, over all devices (`hetjax.execution.flops.model_flops`)."""
        return self._flops[id(self._trainer.compiled_for(batch))]

    def of(self, flops: int, seconds: float) -> StepMetrics:
        """Return TFLOP/s over all devices, and, where their peak is known, the model FLOPs utilisation (MFU).

        MFU (Chowdhery et al. 2022, "PaLM", appendix B) is against the bfloat16 peak of all devices that the placement
        uses.
        """
        rate = flops / max(seconds, 1e-9)
        metrics = {"tflops_per_second": round(rate / 1e12, 6)}
        return metrics if self._peak is None else {**metrics, "mfu": round(rate / self._peak, 6)}


def busy_seconds(timer: ActionTimer, graph: StageGraph) -> dict[str, float]:
    """Return for each module how long each of its devices ran programs in a timed step, whatever their module.

    The mean over the devices of its stages; transfers and host copies are no programs.
    """
    of_device: dict[Hashable, float] = defaultdict(float)
    devices: dict[str, set[Hashable]] = defaultdict(set)
    for stage in graph.stages:
        devices[stage.module] |= set(graph.occupies(stage.name))
    for (name, kind, *_), seconds in timer.seconds.items():
        if kind is not Kind.TRANSFER and kind not in HOST_COPIES:
            for device in graph.occupies(name):
                of_device[device] += sum(seconds)
    return {module: sum(of_device[device] for device in own) / len(own) for module, own in devices.items()}


def idle_shares(busy: Mapping[str, float], step_seconds: float) -> StepMetrics:
    """Return as "idle/MODULE" the share of a step, from 0 to 1, for which a module's devices ran no program.

    Args:
        busy: what `busy_seconds` returned, of a step whose programs were timed one by one.
        step_seconds: how long a step takes in which they are not, and overlap.
    """
    return {f"idle/{module}": round(max(0.0, 1 - taken / step_seconds), 4) for module, taken in busy.items()}
