"""Attend with relative positions, those of Transformer-XL (Dai et al. 2019, section 3.3).

The score of query i for key j, with r_d the map of the encoding of distance d = i - j, and two biases u and v a head:

    ((q_i + u) · k_j + (q_i + v) · r_(i-j)) / sqrt(head width)
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from hetjax.models.dims import constrain, named
from hetjax.models.parallel.sharded_linear import sharded_linear
from hetjax.models.parts.conformer.dims import TOKENS
from hetjax.models.parts.linear import Linear
from hetjax.models.scopes import scope

# B batch · C clips a sample · N tokens of a clip · D width · H heads · K head width · P distances = 2N - 1


def encode_distances(tokens: int, width: int, dtype: jax.typing.DTypeLike) -> Float[Array, "P D"]:
    """Return sines and cosines, in turns, of the distances N-1 down to -(N-1), at wavelengths up to 2π * 10000."""
    wide = jnp.promote_types(dtype, jnp.float32)
    distances = jnp.arange(tokens - 1, -tokens, -1, dtype=wide)
    angles = distances[:, None] * 10000.0 ** (-jnp.arange(0, width, 2, dtype=wide) / width)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(len(distances), width).astype(dtype)


def shift_distances(x: Float[Array, "*heads N P"]) -> Float[Array, "*heads N N"]:
    """Return x[i, d], where d counts distances from N-1 down, as [i, j]: entry d = N - 1 - i + j."""
    *heads, queries, distances = x.shape
    # One column more makes each row begin one entry further left than the one above, once read with rows of N.
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 0)]).reshape(*heads, distances + 1, queries)
    return padded[..., 1:, :].reshape(x.shape)[..., :queries]


class RelativeAttention(nnx.Module):
    """Every token attends to all valid tokens of its clip; linear maps have no biases."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        by_head = {"heads": heads, "head_dim": width // heads}
        self.query = Linear({"embed": width}, by_head, rngs=rngs)
        self.key = Linear({"embed": width}, by_head, rngs=rngs)
        self.value = Linear({"embed": width}, by_head, rngs=rngs)
        self.distance = Linear({"embed": width}, by_head, rngs=rngs)
        init = named(nnx.initializers.normal(0.02), *by_head)
        self.content_bias = nnx.Param(init(rngs.params(), tuple(by_head.values()), jnp.float32))
        self.distance_bias = nnx.Param(init(rngs.params(), tuple(by_head.values()), jnp.float32))
        self.output = Linear(by_head, {"embed": width}, rngs=rngs)

    @scope("attention")
    def __call__(
        self, x: Float[Array, "B C N D"], distances: Float[Array, "P D"], valid: Bool[Array, "B C N"]
    ) -> Float[Array, "B C N D"]:
        """Return what to add to the residual stream; `distances` are those of `encode_distances`."""
        query, key, value = sharded_linear(x, self.query, self.key, self.value, given=TOKENS, wanted=TOKENS)
        (of_distance,) = sharded_linear(distances, self.distance, given=(None,), wanted=(None,))
        attended = attend_relatively(
            query, key, value, of_distance, self.content_bias[...], self.distance_bias[...], valid
        )
        attended = constrain(attended, *TOKENS, "heads", "head_dim")
        return sharded_linear(attended, self.output, given=TOKENS, wanted=TOKENS)[0]


@partial(jax.checkpoint, prevent_cse=False)
def attend_relatively(
    query: Float[Array, "B C N H K"],
    key: Float[Array, "B C N H K"],
    value: Float[Array, "B C N H K"],
    of_distance: Float[Array, "P H K"],
    content_bias: Float[Array, "H K"],
    distance_bias: Float[Array, "H K"],
    valid: Bool[Array, "B C N"],
) -> Float[Array, "B C N H K"]:
    """Return softmax(scores) · value over the valid keys; scores and softmax are float32 at least.

    The backward pass keeps the arguments and computes the N² scores of a head again.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    content = jnp.einsum("bcshk,bcthk->bchst", query + content_bias, key, preferred_element_type=wide)
    by_distance = jnp.einsum("bcshk,phk->bchsp", query + distance_bias, of_distance, preferred_element_type=wide)
    scores = (content + shift_distances(by_distance)) * query.shape[-1] ** -0.5
    scores = jnp.where(valid[:, :, None, None, :], scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bchst,bcthk->bcshk", weights, value)
