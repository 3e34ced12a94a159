"""Makes programs run one after the other where the backend does not keep their order.

All processes of a job dispatch the programs they share in one order. A GPU or a TPU also runs them in that
order. The CPU backend does not: it starts each on whichever thread is free. Two things go wrong (seen on jax
0.10.2 with gloo, stacks of the processes in hand). The messages of two programs that several processes share
mix up, or wait for each other forever, when both are under way at the same time. And a process dispatches on
as many threads as it has devices, each of which stops once 32 programs of a device have not ended: where one
stops and another is inside a collective that waits for the first's device, both wait forever. So on CPU
devices of a job of several processes, and only there, the host waits for every program with collectives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from jax.sharding import Mesh

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_order(program: Callable[Arguments, Result], mesh: Mesh) -> Callable[Arguments, Result]:
    """Return a program over `mesh` as it has to be called: itself, or waiting where the backend keeps no order."""
    if mesh.devices.flat[0].platform != "cpu" or jax.process_count() == 1 or mesh.size == 1:
        return program

    def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        return jax.block_until_ready(program(*arguments, **options))

    return run
