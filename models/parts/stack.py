"""L layers of one shape, held as one layer whose weights have a leading "layers" dim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from models.remat import rematerialized


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

    def scan(self, step: Callable[[Any, Any, Any], tuple[Any, Any]], carry: Any, each: Any = None) -> tuple[Any, Any]:
        """`carry, out = step(layer, carry, each[i])` for each layer in turn.

        `each` is a pytree whose leaves lead with the layers dim. Returns the last carry and the outs, stacked.
        The backward computes again what the setting of `models.remat` in force does not keep of a layer.
        """
        definition, weights = nnx.split(self.block)

        def body(carry, layer):
            layer_weights, own = layer
            return step(nnx.merge(definition, layer_weights), carry, own)

        return jax.lax.scan(rematerialized(body), carry, (weights, each), length=self.count)

    def keep(self, start: int, stop: int) -> None:
        """Drop all layers but start..stop-1."""
        definition, weights = nnx.split(self.block)
        self.block = nnx.merge(definition, jax.tree.map(lambda weight: weight[start:stop], weights))
        self.count = stop - start
