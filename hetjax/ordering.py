"""Programs that several processes share, run one after the other.

All processes of a job dispatch the programs they share in one order. A GPU or a TPU also runs them in that
order. The CPU backend does not: it starts each on whichever thread is free, and the messages of two
programs that are under way at the same time mix up, or wait for each other forever (seen on jax 0.10.2
with gloo, stacks of both processes in hand). So on CPU devices, and only there, the host waits for every
program that runs in several processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh


def in_order(program: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A program over `mesh` as it has to be called: itself, or one that waits where the backend keeps no order."""
    devices = mesh.devices.flat
    if devices[0].platform != "cpu" or len({device.process_index for device in devices}) == 1:
        return program

    def run(*arguments: Any) -> Any:
        return jax.block_until_ready(program(*arguments))

    return run
