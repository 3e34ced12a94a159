"""Metrics that a module returns beside its loss, each with how it is combined over the parts of a batch."""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Num


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sum:
    """A number that is added up over microbatches and shards of the batch.

    Attributes:
        total: that of the samples at hand, a scalar.
    """

    total: Num[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over tokens, samples or whatever is counted: totals and counts are added up, then divided.

    Over tokens the count is that of `loss_weights`, say, over samples `len(x)`. A count of 0 gives 0.

    Attributes:
        total: the sum of what is averaged, over the samples at hand, a scalar.
        count: how many there are of it, a scalar.
    """

    total: Num[Array, ""]
    count: Num[Array, ""] | float
