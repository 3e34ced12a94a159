"""The convolution module of a conformer layer."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from hetjax.models.dims import constrain, named
from hetjax.models.parallel.sharded_linear import sharded_linear
from hetjax.models.parts.conformer.batch_norm import BatchNorm
from hetjax.models.parts.conformer.dims import TOKENS
from hetjax.models.parts.linear import Linear, fan_in_normal
from hetjax.models.scopes import scope

# B batch · C clips a sample · N tokens of a clip · D width · M channels, as many as D


class Convolution(nnx.Module):
    """output(silu(norm(depthwise(value(x) * sigmoid(gate(x)))))), without biases but for the norm's.

    Tokens that are not valid count as zeros to their neighbours. A layout that splits hidden widths splits the
    channels: all between the maps is by channel.
    """

    def __init__(self, width: int, taps: int, *, epsilon: float, momentum: float, norm_by_batch: bool, rngs: nnx.Rngs):
        self.value = Linear({"embed": width}, {"mlp": width}, rngs=rngs)
        self.gate = Linear({"embed": width}, {"mlp": width}, rngs=rngs)
        init = named(fan_in_normal(taps), None, "mlp")
        self.depthwise = nnx.Param(init(rngs.params(), (taps, width), jnp.float32))
        self.norm = BatchNorm(width, epsilon=epsilon, momentum=momentum, by_batch=norm_by_batch, rngs=rngs)
        self.output = Linear({"mlp": width}, {"embed": width}, rngs=rngs)

    @scope("convolution")
    def __call__(self, x: Float[Array, "B C N D"], valid: Bool[Array, "B C N"]) -> Float[Array, "B C N D"]:
        """Return what to add to the residual stream."""
        value, gate = sharded_linear(x, self.value, self.gate, given=TOKENS, wanted=TOKENS)
        mixed = constrain(_mix(value, gate, valid, self.depthwise[...]), *TOKENS, "mlp")
        return sharded_linear(_silu(self.norm(mixed, valid)), self.output, given=TOKENS, wanted=TOKENS)[0]


@partial(jax.checkpoint, prevent_cse=False)
def _mix(
    value: Float[Array, "B C N M"],
    gate: Float[Array, "B C N M"],
    valid: Bool[Array, "B C N"],
    kernel: Float[Array, "taps M"],
) -> Float[Array, "B C N M"]:
    """The gated value, convolved over time; the backward pass computes both again."""
    gated = jnp.where(valid[..., None], value * jax.nn.sigmoid(gate), 0)
    taps, tokens = kernel.shape[0], gated.shape[2]
    padded = jnp.pad(gated, [(0, 0), (0, 0), (taps // 2, taps // 2), (0, 0)])
    # A sum of shifted products rather than a grouped convolution: it splits by channel like any elementwise product.
    wide = jnp.promote_types(gated.dtype, jnp.float32)
    shifted = (padded[:, :, tap : tap + tokens].astype(wide) * kernel[tap] for tap in range(taps))
    return sum(shifted, start=jnp.zeros((), wide)).astype(gated.dtype)


@partial(jax.checkpoint, prevent_cse=False)
def _silu(x: Float[Array, "B C N M"]) -> Float[Array, "B C N M"]:
    return jax.nn.silu(x)
