"""Bytes of memory that a compiled program needs, as its compiler counts them."""

from __future__ import annotations

from typing import NamedTuple

import jax


class MemoryUse(NamedTuple):
    """Bytes that one device needs for one call of a program, as its compiler counts them.

    Attributes:
        arguments: what is passed in.
        outputs: what is returned, with what reuses the memory of donated arguments.
        donated: of `outputs`, what lies in the memory of donated arguments.
        temporary: everything between.
        code: the executable.
        host: in the memory of its host, of all these together.
    """

    arguments: int
    outputs: int
    donated: int
    temporary: int
    code: int
    host: int

    @property
    def total(self) -> int:
        """The peak of the device's memory: all of it at once; donated memory counts once, the host's not."""
        return self.arguments + self.outputs - self.donated + self.temporary + self.code


def memory_use(compiled: jax.stages.Compiled) -> MemoryUse:
    """Return what one device needs for a call, without the workspaces that libraries choose as they run."""
    found = compiled.memory_analysis()
    return MemoryUse(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        donated=found.alias_size_in_bytes,
        temporary=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
        host=found.host_argument_size_in_bytes
        + found.host_output_size_in_bytes
        - found.host_alias_size_in_bytes
        + found.host_temp_size_in_bytes,
    )
