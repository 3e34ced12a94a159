"""Peak figures of accelerators, for utilisation and time predictions.

Dense (no sparsity) bfloat16 matrix throughput and memory bandwidth from the vendors' data sheets, and
what a device can send in one direction. The data sheets give the links inside a host both ways together
(NVLink 600, 900 and 1800 GB/s a GPU; ICI 400 and 1200 GB/s a TPU), so half of it stands here. The network
is that of NVIDIA's DGX A100 (a 200 Gb/s ConnectX-6 a GPU), DGX H100, H200 and B200 (a 400 Gb/s
ConnectX-7 a GPU), and of Google's v5e (6.4 Tb/s for the 256 chips of a pod) and v5p (50 Gb/s a chip).

No data sheet gives latencies. Those here are assumptions: the order of what a small message takes
between the programs of two devices.
"""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of device, in FLOP/s, bytes, bytes/s and seconds.

    Attributes:
        name: as part of `jax.Device.device_kind`.
        bfloat16_flops: FLOP/s of matrix products.
        memory_bytes, memory_bandwidth: of the device's own memory.
        link_bandwidth: what a device sends (and, at the same time, receives) over the fast links of its host.
        network_bandwidth: the same between hosts.
        devices_per_host: devices that the fast links join: those of a host, or of a whole TPU pod.
        link_latency, network_latency: seconds a message takes besides its bytes; assumed.
    """

    name: str
    bfloat16_flops: float
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    devices_per_host: int
    link_latency: float = 3e-6
    network_latency: float = 10e-6


HARDWARE = (
    Hardware(
        name="B200", bfloat16_flops=2250e12, memory_bytes=180e9, memory_bandwidth=7.7e12,
        link_bandwidth=900e9, network_bandwidth=50e9, devices_per_host=8,
    ),
    Hardware(
        name="H200", bfloat16_flops=989e12, memory_bytes=141e9, memory_bandwidth=4.8e12,
        link_bandwidth=450e9, network_bandwidth=50e9, devices_per_host=8,
    ),
    Hardware(
        name="H100", bfloat16_flops=989e12, memory_bytes=80e9, memory_bandwidth=3.35e12,
        link_bandwidth=450e9, network_bandwidth=50e9, devices_per_host=8,
    ),
    Hardware(
        name="A100", bfloat16_flops=312e12, memory_bytes=80e9, memory_bandwidth=2.0e12,
        link_bandwidth=300e9, network_bandwidth=25e9, devices_per_host=8,
    ),
    Hardware(
        name="TPU v5 lite", bfloat16_flops=197e12, memory_bytes=16e9, memory_bandwidth=8.2e11,
        link_bandwidth=200e9, network_bandwidth=3.125e9, devices_per_host=256,
    ),
    Hardware(
        name="TPU v5", bfloat16_flops=459e12, memory_bytes=95e9, memory_bandwidth=2.76e12,
        link_bandwidth=600e9, network_bandwidth=6.25e9, devices_per_host=8960,
    ),
)  # fmt: skip


def find_hardware(device_kind: str) -> Hardware | None:
    """Return the figures of a device by `jax.Device.device_kind`, or None where they are not known (a CPU, say)."""
    matches = (entry for entry in HARDWARE if re.search(rf"\b{entry.name}\b", device_kind, re.IGNORECASE))
    return next(matches, None)
