"""The memory that devices really held in the first steps, beside what the report on the compiled programs says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import jax

from hetjax.fit.held import device_groups
from hetjax.fit.step_bytes import link_bytes, stage_bytes
from hetjax.meshes import local_devices
from hetjax.trainer import Trainer
from hetjax.training.display import format_bytes


def memory_held(trainer: Trainer) -> dict[int, Mapping[str, int]]:
    """Return what the backend counted of each device of this process, by id; empty where it does not count (a CPU)."""
    counted = {device.id: device.memory_stats() for device in local_devices(devices_used(trainer))}
    return {device: stats for device, stats in counted.items() if stats}


def memory_lines(trainer: Trainer, held: Mapping[int, Mapping[str, int]]) -> Iterator[str]:
    """Yield for each group of devices with the same stages what its fullest held, and what the report says of it.

    Args:
        trainer: the trainer, compiled.
        held: what `memory_held` returned, "peak_bytes_in_use" of each device and its "bytes_limit".
    """
    step = trainer.compiled
    local = [stage.name for stage in trainer.stages if stage.is_local]
    for group in device_groups(step.schedule, stage_bytes(step, local), link_bytes(step)):
        peaks = {device: held[device]["peak_bytes_in_use"] for device in group.devices if device in held}
        if peaks:
            fullest = max(peaks, key=peaks.get)
            limit = held[fullest].get("bytes_limit")
            most = format_bytes(peaks[fullest]) + (f" of {format_bytes(limit)}" if limit else "")
            yield (
                f"memory: device {fullest} ({', '.join(group.stages)}) held {most} at most, by its programs' count "
                f"{format_bytes(group.peak.total)} at {group.peak.action} of {group.peak.stage}"
            )


def devices_used(trainer: Trainer) -> list[jax.Device]:
    """Return every device that some stage uses, of all processes."""
    return list(dict.fromkeys(device for stage in trainer.stages for device in stage.mesh.devices.flat))
