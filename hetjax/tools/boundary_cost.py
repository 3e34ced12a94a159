"""Predict how long a boundary plan takes on given hardware. Pure; no device is touched.

Links are priced by the alpha-beta model (Hockney 1994): n messages of b bytes together take
`n * alpha + b / beta` over one device's links, with latency alpha and bandwidth beta. A device sends and
receives at the same time, and inside its host and over the network at the same time, so a hop takes as
long as the busiest of these four does on the busiest device:

    hop = max over devices of max(send inside, receive inside, send network, receive network)

and a plan the sum of its hops. Device number d is on host d // devices_per_host. What devices do
themselves (slicing, concatenating) is not counted, nor what links share beyond a device's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hetjax.boundary.plan import PlanHop
from hetjax.meshes import Hardware


def plan_seconds(hops: Iterable[PlanHop], hardware: Hardware) -> float:
    """Return the predicted seconds of hops one after another, such as `BoundaryPlan.hops` or `leader_hops(...)`."""
    return sum(hop_seconds(hop, hardware) for hop in hops)


def hop_seconds(hop: PlanHop, hardware: Hardware) -> float:
    """Return the predicted seconds of one hop: those of its busiest device."""
    per_host = hardware.devices_per_host
    messages: Counter[tuple[int, str, bool]] = Counter()
    nbytes: Counter[tuple[int, str, bool]] = Counter()
    for (sender, receiver), size in hop.bytes_per_pair.items():
        inside = sender // per_host == receiver // per_host
        for end in ((sender, "send", inside), (receiver, "receive", inside)):
            messages[end] += 1
            nbytes[end] += size
    return max((_seconds(hardware, end[2], messages[end], nbytes[end]) for end in messages), default=0.0)


def busiest_device_bytes(hop: PlanHop) -> int:
    """Return the most bytes that one device sends, or receives, in a hop."""
    sent: Counter[int] = Counter()
    received: Counter[int] = Counter()
    for (sender, receiver), size in hop.bytes_per_pair.items():
        sent[sender] += size
        received[receiver] += size
    return max([*sent.values(), *received.values()], default=0)


def _seconds(hardware: Hardware, inside: bool, messages: int, nbytes: int) -> float:
    if inside:
        return messages * hardware.link_latency + nbytes / hardware.link_bandwidth
    return messages * hardware.network_latency + nbytes / hardware.network_bandwidth
