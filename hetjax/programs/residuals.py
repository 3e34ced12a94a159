"""Keep the residuals of a forward program for its backward, without the arrays that both take anyway."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax

from hetjax.compilation.compiled_program import ArrayTree


class Residuals(NamedTuple):
    """The arrays that a stage keeps of one microbatch between its forward and its backward; no weights.

    Attributes:
        arguments: arguments of the forward that the backward takes again, by their position among all of the
            forward's, flattened, as text.
        kept: arrays that the forward made.
    """

    arguments: dict[str, jax.Array]
    kept: tuple[jax.Array, ...]


class Place(NamedTuple):
    """The place of a leaf of a VJP: among the forward's own arguments, or among the arrays that it kept."""

    among: Literal["arguments", "kept"]
    position: int


@dataclasses.dataclass
class ResidualPlaces:
    """Takes a VJP apart in the forward and puts it together in the backward, both while they are traced.

    Attributes:
        treedef: the VJP without its leaves.
        places: where each leaf is found.
    """

    treedef: jax.tree_util.PyTreeDef | None = None
    places: tuple[Place, ...] = ()

    def keep(self, vjp: Callable[..., ArrayTree], arguments: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Return the leaves that are no argument, each once; remember where all of them are."""
        leaves, self.treedef = jax.tree.flatten(vjp)
        argument_of = {id(argument): i for i, argument in enumerate(arguments)}
        kept: list[jax.Array] = []
        kept_of: dict[int, int] = {}
        places = []
        for leaf in leaves:
            if id(leaf) in argument_of:
                places.append(Place("arguments", argument_of[id(leaf)]))
                continue
            if id(leaf) not in kept_of:
                kept_of[id(leaf)] = len(kept)
                kept.append(leaf)
            places.append(Place("kept", kept_of[id(leaf)]))
        self.places = tuple(places)
        return tuple(kept)

    def restore(self, arguments: Sequence[jax.Array | None], kept: Sequence[jax.Array]) -> Callable[..., ArrayTree]:
        """Return the VJP, from the arguments at the positions `arguments` and what was kept."""
        sources = {"arguments": arguments, "kept": kept}
        return self.treedef.unflatten([sources[place.among][place.position] for place in self.places])

    @property
    def arguments(self) -> set[int]:
        """Positions of the arguments that the backward takes again."""
        return {place.position for place in self.places if place.among == "arguments"}
