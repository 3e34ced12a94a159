"""Say which device of two meshes holds which part of which token: the static facts of a ragged boundary.

A tensor [rows, slots, width] has a token in every slot. A token is as many *units* as the widths of both sides have
parts in common; a unit lies on one device, or on several alike. Pure; no device is touched.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Int

from hetjax.boundary.tiling import Tiling
from hetjax.errors import BoundaryError

# R rows and N slots of the source · B rows and M slots of the destination · D devices of both meshes


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaggedPlaces:
    """Where tokens lie on both sides.

    Attributes:
        source_shape, destination_shape: those of the tensors, alike from the third dim on.
        itemsize: bytes of an element.
        source, destination: the tilings asked for.
        source_fine, destination_fine: the tilings between which units cross: on separate devices those of one token
            alike share its width out, so that every byte crosses once.
    """

    source_shape: tuple[int, ...]
    destination_shape: tuple[int, ...]
    itemsize: int
    source: Tiling
    destination: Tiling
    source_fine: Tiling
    destination_fine: Tiling

    @functools.cached_property
    def devices(self) -> tuple[int, ...]:
        """Ids of the devices of both meshes, ascending; a device's place is its number among them."""
        return tuple(sorted({*self.source.devices, *self.destination.devices}))

    @property
    def disjoint(self) -> bool:
        """Whether the meshes share no device."""
        return not set(self.source.devices) & set(self.destination.devices)

    @property
    def width(self) -> int:
        """Elements of a token."""
        return math.prod(self.source_shape[2:])

    @functools.cached_property
    def lanes(self) -> int:
        """Units of a token."""
        return math.lcm(_parts(self.source_fine)[2], _parts(self.destination_fine)[2])

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit."""
        return self.width // self.lanes * self.itemsize

    @functools.cached_property
    def source_tile(self) -> tuple[int, int, int]:
        """Rows, slots and lanes of what a device of the source holds."""
        return self._tile(self.source_shape, self.source_fine)

    @functools.cached_property
    def destination_tile(self) -> tuple[int, int, int]:
        """The same of the destination."""
        return self._tile(self.destination_shape, self.destination_fine)

    @property
    def copies(self) -> int:
        """The most devices that one device sends a unit to."""
        return -(-self.destination_fine.replication // self.source_fine.replication)

    @property
    def most_sent(self) -> int:
        """The most units that a device may have to send."""
        return math.prod(self.source_tile) * self.copies

    @functools.cached_property
    def source_places(self) -> Int[np.ndarray, "rows slots widths copies"]:
        """The places of the devices that hold each tile of the source."""
        return self._places(self.source_fine)

    @functools.cached_property
    def destination_places(self) -> Int[np.ndarray, "rows slots widths copies"]:
        """The same of the destination."""
        return self._places(self.destination_fine)

    def _tile(self, shape: tuple[int, ...], fine: Tiling) -> tuple[int, int, int]:
        rows, slots, widths = _parts(fine)
        return shape[0] // rows, shape[1] // slots, self.lanes // widths

    def _places(self, fine: Tiling) -> Int[np.ndarray, "rows slots widths copies"]:
        place = {device: number for number, device in enumerate(self.devices)}
        found = np.empty((*_parts(fine), fine.replication), np.int32)
        for tile, devices in fine.holders.items():
            found[(*tile, 0)[:3]] = [place[device] for device in devices]
        return found


def make_places(
    source_shape: tuple[int, ...],
    destination_shape: tuple[int, ...],
    itemsize: int,
    source: Tiling,
    destination: Tiling,
) -> RaggedPlaces:
    """Return where the tokens of two tensors lie.

    Raises BoundaryError for tensors that are no [rows, slots] or [rows, slots, width] of tokens alike, and where tiles
    do not divide them.
    """
    shapes = (source_shape, destination_shape)
    if not 2 <= len(source_shape) <= 3 or source_shape[2:] != destination_shape[2:]:
        raise BoundaryError(
            f"ragged boundary: tokens of {source_shape} go to {destination_shape}; give [rows, slots] or "
            "[rows, slots, width], with one width on both sides"
        )
    for side, shape, tiling in zip(("source", "destination"), shapes, (source, destination), strict=True):
        if any(size % count for size, count in zip(shape, tiling.counts, strict=True)):
            raise BoundaryError(f"ragged boundary: {side} of shape {shape} does not divide into {tiling.counts} tiles")
    fine = source, destination
    if not set(source.devices) & set(destination.devices) and len(source_shape) == 3:
        finer = _by_width(source), _by_width(destination)
        # Where the width does not divide, each copy gets whole tokens.
        if source_shape[2] % math.lcm(*(tiling.counts[2] for tiling in finer)) == 0:
            fine = finer
    return RaggedPlaces(
        source_shape=source_shape,
        destination_shape=destination_shape,
        itemsize=itemsize,
        source=source,
        destination=destination,
        source_fine=fine[0],
        destination_fine=fine[1],
    )


def inverse_routes(routes: Int[np.ndarray, "B M"], shape: tuple[int, int]) -> Int[np.ndarray, "R N"]:
    """Return the routes of the way back.

    `routes` holds for each slot of the destination the number of the token that it gets, row * N + slot among `shape`
    (R, N), or -1 for none; what comes back holds for each token of the source the slot that it is in, likewise.

    Raises BoundaryError for a number beyond the tokens, and for a token that goes to two slots.
    """
    used = np.flatnonzero(routes.ravel() >= 0)
    tokens = routes.ravel()[used]
    count = math.prod(shape)
    if len(tokens) and tokens.max() >= count:
        raise BoundaryError(
            f"ragged boundary: token {tokens.max()} is asked for, but rows and slots {shape} have {count}"
        )
    back = np.full(count, -1, np.int32)
    back[tokens] = used
    if np.count_nonzero(back >= 0) < len(used):
        twice = np.flatnonzero(np.bincount(tokens) > 1)[0]
        raise BoundaryError(f"ragged boundary: token {twice} goes to several slots; a token may go to one")
    return back.reshape(shape)


def _parts(tiling: Tiling) -> tuple[int, int, int]:
    return (*tiling.counts, 1)[:3]


def _by_width(tiling: Tiling) -> Tiling:
    return tiling.refined(dict.fromkeys(tiling.free_axes, 2))
