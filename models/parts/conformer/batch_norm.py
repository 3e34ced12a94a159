"""Normalize channels over the valid tokens of all clips: batch normalization (Ioffe and Szegedy 2015)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from hetjax.models.dims import named
from hetjax.models.mode import infers
from hetjax.models.scopes import scope

# B batch · C clips a sample · N tokens of a clip · M channels


class BatchNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, with one mean and variance a channel.

    Either always the running statistics, which stay, or, if `by_batch`, in training those of the valid tokens of all
    clips of the call, on all devices. These then move the running ones: r += momentum * (new - r), with the
    variance over n - 1 tokens, where at least two tokens are valid. The statistics are float32 at least; running ones
    are state that does not train (`nnx.BatchStat`), and keep their dtype.
    """

    def __init__(self, channels: int, *, epsilon: float, momentum: float, by_batch: bool, rngs: nnx.Rngs):
        self.epsilon, self.momentum, self.by_batch = epsilon, momentum, by_batch
        ones, zeros = (named(init(), "mlp") for init in (nnx.initializers.ones_init, nnx.initializers.zeros_init))
        key, shape = rngs.params(), (channels,)
        self.scale, self.bias = nnx.Param(ones(key, shape, jnp.float32)), nnx.Param(zeros(key, shape, jnp.float32))
        self.mean = nnx.BatchStat(zeros(key, shape, jnp.float32))
        self.variance = nnx.BatchStat(ones(key, shape, jnp.float32))
        self.batches = nnx.BatchStat(jnp.zeros((), jnp.int32))

    @scope("norm")
    def __call__(self, x: Float[Array, "B C N M"], valid: Bool[Array, "B C N"]) -> Float[Array, "B C N M"]:
        """Return the normalized x; in training `by_batch`, by the statistics of its valid tokens."""
        if self.by_batch and not infers():
            mean, variance, count = _statistics(x, valid)
            self._move(mean, variance, count)
        else:
            mean, variance = self.mean[...], self.variance[...]
        return _normalize(x, mean, variance, self.scale[...], self.bias[...], self.epsilon)

    def _move(self, mean: Float[Array, " M"], variance: Float[Array, " M"], count: Float[Array, ""]) -> None:
        share = jnp.where(count > 1, self.momentum, 0)
        unbiased = variance * (count / jnp.maximum(count - 1, 1))
        for running, new in ((self.mean, mean), (self.variance, unbiased)):
            old = running[...]
            moved = old + share * (jax.lax.stop_gradient(new) - old)
            running[...] = moved.astype(old.dtype)
        self.batches[...] = self.batches[...] + (count > 1).astype(self.batches[...].dtype)


@partial(jax.checkpoint, prevent_cse=False)
def _statistics(
    x: Float[Array, "B C N M"], valid: Bool[Array, "B C N"]
) -> tuple[Float[Array, " M"], Float[Array, " M"], Float[Array, ""]]:
    """(mean, variance over n, n) of the n valid tokens; zeros where there are none."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    count = valid.sum(dtype=wide.dtype)
    mean = jnp.where(valid[..., None], wide, 0).sum(axis=(0, 1, 2)) / jnp.maximum(count, 1)
    centred = jnp.where(valid[..., None], wide - mean, 0)
    return mean, jnp.square(centred).sum(axis=(0, 1, 2)) / jnp.maximum(count, 1), count


@partial(jax.checkpoint, prevent_cse=False, static_argnums=5)
def _normalize(
    x: Float[Array, "B C N M"],
    mean: Float[Array, " M"],
    variance: Float[Array, " M"],
    scale: Float[Array, " M"],
    bias: Float[Array, " M"],
    epsilon: float,
) -> Float[Array, "B C N M"]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return ((wide - mean) * jax.lax.rsqrt(variance.astype(wide.dtype) + epsilon)).astype(x.dtype) * scale + bias
