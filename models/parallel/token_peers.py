"""The devices that share out the experts of a mixture."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peers:
    """The devices that share out the experts.

    Attributes:
        axes: mesh axes over which they are neighbours.
        count: how many they are, this one included.
        ragged: whether they can exchange as many tokens as there are (`jax.lax.ragged_all_to_all`), and need not fill
            buffers up.
    """

    axes: tuple[str, ...]
    count: int
    ragged: bool
