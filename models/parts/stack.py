"""Stack L layers of one shape: one layer whose weights have a leading "layers" dim, run by a scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import nnx
from jaxtyping import Array, PyTree

from hetjax.models.remat import rematerialized
from hetjax.models.scopes import scope

Carry = TypeVar("Carry", bound=PyTree[Array])
"""What goes from layer to layer."""
Own = TypeVar("Own", bound=PyTree[Array])
"""What one layer has of its own beside its weights, or all layers, stacked."""
Out = TypeVar("Out", bound=PyTree[Array])
"""What one layer gives beside the carry, or all layers, stacked."""
Path = tuple[str | int, ...]
"""A path of a variable in a module's state."""


class Stack(nnx.Module):
    """Builds `count` layers from one key each and runs them with a scan.

    Weights are only ever read through the scan: an index into a stacked weight would be a new array,
    kept for the backward pass next to the weight itself.
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module], count: int, *, rngs: nnx.Rngs):
        self.count = count
        self.block = nnx.vmap(
            lambda key: build(nnx.Rngs(key)), in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"}
        )(jax.random.split(rngs.params(), count))

    def scan(
        self,
        call: Callable[[nnx.Module, Carry, Own], tuple[Carry, Out]],
        carry: Carry,
        each: Own | None = None,
    ) -> tuple[Carry, Out]:
        """Run `carry, out = call(layer, carry, each[i])` for each layer in turn; return the last carry, the outs.

        `each` is a pytree whose leaves lead with the layers dim; the outs are stacked like it.
        The backward computes again what the setting of `hetjax.models.remat` in force does not keep of a layer.
        Variables that a layer sets, and that are not nnx.Param, are set here for all layers; others stay untouched.
        """
        definition, weights = nnx.split(self.block)

        def body(carry, layer):
            layer_weights, own = layer
            block, before = nnx.merge(definition, layer_weights), values_of(layer_weights)
            with scope("layer"):
                carry, out = call(block, carry, own)
            return carry, (out, set_since(before, block))

        carry, (out, changed) = jax.lax.scan(rematerialized(body), carry, (weights, each), length=self.count)
        self._take(changed)
        return carry, out

    def end_of_step(self) -> None:
        """Call the layers' own `end_of_step`, which may set variables that are not nnx.Param."""
        definition, weights = nnx.split(self.block)

        def end(layer_weights):
            block, before = nnx.merge(definition, layer_weights), values_of(layer_weights)
            block.end_of_step()
            return set_since(before, block)

        self._take(jax.vmap(end)(weights))

    def _take(self, changed: nnx.State) -> None:
        if jax.tree.leaves(changed):
            nnx.update(self.block, changed)

    def keep(self, start: int, stop: int) -> None:
        """Drop all layers but start..stop-1."""
        definition, weights = nnx.split(self.block)
        self.block = nnx.merge(definition, jax.tree.map(lambda weight: weight[start:stop], weights))
        self.count = stop - start


def values_of(state: nnx.State) -> dict[Path, jax.Array]:
    """Return the arrays of a state by path."""
    return {path: variable.get_value() for path, variable in nnx.to_flat_state(state)}


def set_since(before: dict[Path, jax.Array], layer: nnx.Module) -> nnx.State:
    """Return the variables of a layer, but for nnx.Param, that hold another array than `before`."""
    return nnx.from_flat_state(
        [
            (path, variable)
            for path, variable in nnx.to_flat_state(nnx.state(layer))
            if not isinstance(variable, nnx.Param) and variable.get_value() is not before[path]
        ]
    )
