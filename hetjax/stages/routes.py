"""Routes: which token of an encoder goes to which slot of which row, where it is not the encoder's own row.

`batch["routes"]` holds by "module.port" of an encoder's output, such as "vision.tokens", int32 [B, M]: for each of the
M token slots that the reader has in a row, the token that it gets, row * N + slot, with the row of the batch in which
the encoder makes it and one of the N slots it has there; -1 for none, where zeros arrive. A token goes to one slot at
most, and to a row of its encoder's microbatch. [B, M, 2] adds to what arrives a second number: for ports of indices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hetjax.errors import BatchError
from hetjax.stages.batch import ROUTES, Batch, StageMicrobatch, module_inputs
from hetjax.stages.flat_state import Arrays
from hetjax.stages.link_transport import LinkTransport
from hetjax.stages.links import Link
from hetjax.stages.routed_link import LinkTraffic, RoutedLink
from hetjax.stages.row_subset import RowSubset
from hetjax.stages.stage import Stage


def route_shapes(batch: Batch, links: Sequence[Link], stages: Sequence[Stage]) -> dict[str, tuple[int, ...]]:
    """Return the shape of the routes of each output port that has some; `batch` may hold shapes.

    Raises BatchError for routes of a port that no edge leaves, that are no integers [B, M] or [B, M, 2], or that are
    the rows of one process alone.
    """
    modules = {stage.name: stage.module for stage in stages}
    ports = {f"{modules[link.source]}.{link.source_port}" for link in links}
    rows = next(np.shape(array)[0] for inputs in module_inputs(batch).values() for array in inputs.values())
    for port, routes in batch.get(ROUTES, {}).items():
        if port not in ports:
            raise BatchError(f"the batch has routes for '{port}', which no edge leaves; the ports are {sorted(ports)}")
        dtype = getattr(routes, "dtype", None)
        shape = () if dtype is None else np.shape(routes)
        fits = len(shape) == 2 or (len(shape) == 3 and shape[2] == 2)
        whole = dtype is not None and np.issubdtype(dtype, np.integer) and not isinstance(routes, RowSubset)
        if not whole or not fits or shape[0] != rows:
            raise BatchError(
                f"routes of '{port}' are {type(routes).__name__} {dtype} of shape {shape}; give integers "
                f"[{rows}, slots] of all rows of the batch in every process, or [{rows}, slots, 2] with numbers to add"
            )
    return {port: tuple(np.shape(routes)) for port, routes in batch.get(ROUTES, {}).items()}


def place_routes(
    batch: Batch, boundaries: Mapping[str, LinkTransport | RoutedLink]
) -> tuple[dict[StageMicrobatch, Arrays], dict[str, LinkTraffic]]:
    """Dispatch the tables of all routed links, by link and microbatch of its destination, and say what they move.

    Raises BatchError where the batch has other routes than the programs were compiled for.
    """
    given = dict(batch.get(ROUTES, {}))
    tables: dict[StageMicrobatch, Arrays] = {}
    traffic: dict[str, LinkTraffic] = {}
    used = set()
    for name, boundary in boundaries.items():
        if not isinstance(boundary, RoutedLink):
            continue
        if boundary.port not in given:
            raise BatchError(f"this batch has no routes for '{boundary.port}', but programs were compiled with them")
        used.add(boundary.port)
        placed, traffic[name] = boundary.place(given[boundary.port])
        tables |= {StageMicrobatch(name, microbatch): each for microbatch, each in placed.items()}
    if set(given) - used:
        raise BatchError(
            f"this batch has routes for {', '.join(sorted(set(given) - used))}, but programs were compiled without"
        )
    return tables, traffic
