"""Windows: how many microbatches of the loss a module takes at once, and in which order their rows lie."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from hetjax.errors import ConfigError
from hetjax.graph import ModuleGraph, port_of
from hetjax.meshes import Placement

# W rows of a window


class Join(NamedTuple):
    """Microbatches of a reader that a module takes as one.

    Attributes:
        count: how many.
        degree: the parts that the module's layout splits the batch dim into.
    """

    count: int
    degree: int


@dataclasses.dataclass(frozen=True)
class Window:
    """The microbatches of the loss that a module takes at once; one, unless it joins any.

    Their rows do not follow each other as in the batch. Each device holds the rows of whole microbatches or an equal
    part of every one, so that the module's output is cut into microbatches where it lies.

    Attributes:
        joins: from the loss's microbatches to the module's, one for each module on the way that joins any.
    """

    joins: tuple[Join, ...] = ()

    @property
    def size(self) -> int:
        """How many microbatches of the loss it holds."""
        return math.prod(join.count for join in self.joins)

    def joined(self, count: int, degree: int) -> Window:
        """Return the window that holds `count` of these."""
        return self if count == 1 else Window((*self.joins, Join(count, degree)))

    def rows(self, microbatch_rows: int) -> Int[np.ndarray, " W"]:
        """Return the window's rows in the order in which they lie, numbered as in the batch from its first row on.

        The reader's rows are split into blocks, as many as divide them evenly over the module's degree, and a block
        of each of the reader's microbatches lies beside that of the next.
        """
        order = np.arange(microbatch_rows)
        for count, degree in self.joins:
            blocks = math.gcd(len(order), degree)
            each = order + len(order) * np.arange(count)[:, None]
            order = each.reshape(count, blocks, -1).swapaxes(0, 1).reshape(-1)
        return order


ONE_MICROBATCH = Window()
"""The window of a module that takes the loss's microbatches one by one."""


def make_windows(graph: ModuleGraph, counts: Mapping[str, int], placement: Placement) -> dict[str, Window]:
    """Return the window of each module.

    Args:
        counts: microbatches of each module; that of a module divides those of the modules that it feeds.
        placement: the layouts of the modules.

    Raises ConfigError where the readers of a module would have its rows lie in different orders.
    """
    windows = {module: ONE_MICROBATCH for module in graph.order if not graph.outputs(module)}
    for module in reversed([module for module in graph.order if module not in windows]):
        wanted: dict[Window, str] = {}
        for edge in graph.outputs(module):
            reader = port_of(edge.destination).module
            layout = placement[module]
            degree = math.prod(getattr(layout, axis) for axis in layout.activation_axes("batch"))
            joined = windows[reader].joined(counts[reader] // counts[module], degree)
            wanted.setdefault(joined, reader)
        if len(wanted) > 1:
            one, other, *_ = wanted.values()
            raise ConfigError(
                f"microbatches: module '{module}' ({counts[module]}) feeds '{one}' ({counts[one]}) and '{other}' "
                f"({counts[other]}), which would have the rows of its microbatches lie in different orders; give "
                f"'{one}' and '{other}' the same number of microbatches, that of '{graph.sink}'"
            )
        windows[module] = next(iter(wanted))
    return windows
