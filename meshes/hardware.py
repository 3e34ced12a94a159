"""Peak figures of accelerators, for utilisation and time predictions.

Dense (no sparsity) bfloat16 matrix throughput and memory bandwidth from the vendors' data sheets.
"""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of device: FLOP/s in bfloat16, memory in bytes and bytes/s."""

    name: str
    bfloat16_flops: float
    memory_bytes: float
    memory_bandwidth: float


HARDWARE = (
    Hardware(name="B200", bfloat16_flops=2250e12, memory_bytes=180e9, memory_bandwidth=7.7e12),
    Hardware(name="H200", bfloat16_flops=989e12, memory_bytes=141e9, memory_bandwidth=4.8e12),
    Hardware(name="H100", bfloat16_flops=989e12, memory_bytes=80e9, memory_bandwidth=3.35e12),
    Hardware(name="A100", bfloat16_flops=312e12, memory_bytes=80e9, memory_bandwidth=2.0e12),
    Hardware(name="TPU v5 lite", bfloat16_flops=197e12, memory_bytes=16e9, memory_bandwidth=8.2e11),
    Hardware(name="TPU v5", bfloat16_flops=459e12, memory_bytes=95e9, memory_bandwidth=2.76e12),
)


def find_hardware(device_kind: str) -> Hardware | None:
    """The figures of a device by `jax.Device.device_kind`, or None where they are not known (a CPU, say)."""
    matches = (entry for entry in HARDWARE if re.search(rf"\b{entry.name}\b", device_kind, re.IGNORECASE))
    return next(matches, None)
