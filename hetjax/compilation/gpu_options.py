"""The compiler options of programs for GPUs: what XLA leaves off and a loop over layers needs.

Collectives are asynchronous, and scheduled to run beside computation, by default. What a loop's iteration needs first
has nothing before it to run beside, so that each layer would wait for the gather of its first weights: pipelined, an
iteration gathers what the next one begins with. Read in programs compiled for H100s, 7.1 B parameters on fsdp 4 and
tensor 2: of the gathers in the loops, one was synchronous without it and none is with it, for 0.4 GiB of memory.

That takes the first or the last iteration out of a loop, and so doubles what there is to compile with every loop that
the layers lie in. Of a pattern of layers (`hetjax.models.parts.pattern`), whose loops have loops in them, a compiler
then sees eleven Mamba layers instead of four; of 74 gathers of weights 72 had nothing beside them with it as without
it. Its loops are left as they are.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

import jax

#: Gathers of what the next iteration begins with, as the versions of XLA spell it, the newest first.
_PIPELINED_GATHERS = {
    "xla_gpu_pipeline_all_gather": "COLLECTIVE_PIPELINING_MODE_ON",
    "xla_gpu_enable_pipelined_all_gather": True,
}


def gpu_options(
    device: jax.Device, environment: Mapping[str, str] = os.environ, *, nested_loops: bool = False
) -> dict[str, str | bool]:
    """Return the options of programs for devices like this one: none but for GPUs, and none that XLA_FLAGS sets.

    `nested_loops` says that a program's loops over layers have such loops in them.
    """
    if (
        nested_loops
        or device.platform != "gpu"
        or any(f"--{name}" in environment.get("XLA_FLAGS", "") for name in _PIPELINED_GATHERS)
    ):
        return {}
    return next(({name: value} for name, value in _PIPELINED_GATHERS.items() if _is_known(name, value)), {})


@functools.cache
def _is_known(name: str, value: str | bool) -> bool:
    """Return whether the compiler of this version has an option with this value."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
