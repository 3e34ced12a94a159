"""What a forward program keeps for its backward, without the arrays that both take anyway."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax


@dataclasses.dataclass
class Residuals:
    """How the leaves of a VJP are found again: among the forward's own arguments, or among what it kept."""

    treedef: Any = None
    places: tuple[tuple[str, int], ...] = ()

    def keep(self, vjp: Any, arguments: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """The leaves that are no argument, each once; remembers where all of them are. Called while tracing."""
        leaves, self.treedef = jax.tree.flatten(vjp)
        argument_of = {id(argument): i for i, argument in enumerate(arguments)}
        kept: list[jax.Array] = []
        kept_of: dict[int, int] = {}
        places = []
        for leaf in leaves:
            if id(leaf) in argument_of:
                places.append(("argument", argument_of[id(leaf)]))
                continue
            if id(leaf) not in kept_of:
                kept_of[id(leaf)] = len(kept)
                kept.append(leaf)
            places.append(("kept", kept_of[id(leaf)]))
        self.places = tuple(places)
        return tuple(kept)

    def restore(self, arguments: Sequence[jax.Array | None], kept: Sequence[jax.Array]) -> Any:
        """The VJP, from the arguments at the positions `arguments` and what was kept."""
        sources = {"argument": arguments, "kept": kept}
        return self.treedef.unflatten([sources[where][i] for where, i in self.places])

    @property
    def arguments(self) -> set[int]:
        """Positions of the arguments that the backward takes again."""
        return {i for where, i in self.places if where == "argument"}
