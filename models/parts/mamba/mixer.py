"""Mix a sequence by Mamba-2: projections, convolution, recurrence, gated norm, and a projection back."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.dims import RESIDUAL, SEQUENCE, constrain, named
from hetjax.models.kernels.causal_conv import Streams, causal_conv, ids_from, starts_from
from hetjax.models.kernels.mamba_scan import ssd_scan, ssd_step
from hetjax.models.parallel.mamba_context import context_parallel_mamba
from hetjax.models.parallel.sharded_linear import sharded_linear
from hetjax.models.parallel.zigzag_order import SequenceOrder, check_order, sequence_shards
from hetjax.models.parts.linear import Linear
from hetjax.models.parts.mamba.cache import MambaCache
from hetjax.models.parts.mamba.config import MambaConfig
from hetjax.models.parts.mamba.convolution import CausalConv
from hetjax.models.parts.mamba.gated_norm import GatedNorm
from hetjax.models.scopes import scope

# B batch · S sequence · D width · H heads · P head width · G groups · N state · K taps of the convolution

#: Time steps that heads start with, log-uniform, and their A (Dao and Gu 2024).
INITIAL_DT = (1e-3, 0.1)
INITIAL_A = (1.0, 16.0)


class Mamba2(nnx.Module):
    """out(norm(recurrence(silu(conv(x, b, c)), softplus(dt + dt_bias)) · silu(z))), all causal.

    The letters are the paper's: x is what heads take in, b writes to the state and c reads it, dt is the time step,
    z the gate. Each has a projection of its own, so that a layout which splits heads splits groups ("kv_heads") too,
    and a device computes whole groups. A = -exp(A_log). No projection has a bias.
    """

    def __init__(self, width: int, config: MambaConfig, *, rngs: nnx.Rngs):
        self.config = config
        heads = {"heads": config.heads, "head_dim": config.head_dim}
        # What groups hold is as wide as the state, which no layout splits.
        vectors = {"kv_heads": config.groups, "state": config.state}
        self.z = Linear({"embed": width}, heads, rngs=rngs)
        self.x = Linear({"embed": width}, heads, rngs=rngs)
        self.b = Linear({"embed": width}, vectors, rngs=rngs)
        self.c = Linear({"embed": width}, vectors, rngs=rngs)
        self.dt = Linear({"embed": width}, {"heads": config.heads}, rngs=rngs)
        self.conv_x, self.conv_b, self.conv_c = (
            CausalConv(config.conv_kernel, channels, rngs=rngs) for channels in (heads, vectors, vectors)
        )
        self.A_log, self.dt_bias, self.D = (
            nnx.Param(named(init, "heads")(rngs.params(), (config.heads,), jnp.float32))
            for init in (_log_of_uniform, _step_bias, nnx.initializers.ones_init())
        )
        self.norm = GatedNorm(config.heads, config.head_dim, config.groups, epsilon=config.norm_epsilon, rngs=rngs)
        self.out = Linear(heads, {"embed": width}, rngs=rngs)

    @scope("mamba")
    def __call__(
        self,
        x: Float[Array, "B S D"],
        *,
        order: SequenceOrder | None = None,
        segments: Int[Array, "B S"] | None = None,
        cache: MambaCache | None = None,
        lengths: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B S D"], MambaCache | None]:
        """Return (what to add to the residual stream, the cache after the last token).

        Training gives `order`, that of `hetjax.models.parallel.zigzag_order.causal_order`, which x and `segments` are
        in; with `segments`, no document, neighbouring tokens with equal ids, sees another one. Generation gives a
        `cache`, from which the first token goes on; a call with S = 1 is one token. Of sample b the tokens
        `lengths[b]` and later are padding, which leaves the cache alone; what is returned for them is finite, and means
        nothing.

        Raises LayoutError where the order is not that of the layout in force, or groups do not divide over devices.
        """
        maps = (self.z, self.x, self.b, self.c, self.dt)
        z, *streams, dt = sharded_linear(x, *maps, given=RESIDUAL, wanted=SEQUENCE)
        streams, dt = Streams(*streams), self._steps(dt, lengths)
        a = -jnp.exp(self.A_log[...].astype(dt.dtype))
        if cache is None:
            check_order(SequenceOrder(length=x.shape[1]) if order is None else order, owner="Mamba2")
        if cache is None and sequence_shards() > 1:
            y = context_parallel_mamba(streams, self._convs(), dt, a, self.D[...], segments, chunk=self.config.chunk)
        else:
            y, cache = self._recur(streams, dt, a, segments, cache, lengths)
        y = constrain(self.norm(y, z), *SEQUENCE, "heads", "head_dim")
        return sharded_linear(y, self.out, given=SEQUENCE, wanted=RESIDUAL)[0], cache

    def _convs(self) -> tuple[Streams, Streams]:
        """(kernels, biases)."""
        convs = self.conv_x, self.conv_b, self.conv_c
        return Streams(*(conv.kernel[...] for conv in convs)), Streams(*(conv.bias[...] for conv in convs))

    def _steps(self, dt: Float[Array, "B S H"], lengths: Int[Array, " B"] | None) -> Float[Array, "B S H"]:
        """softplus(dt + dt_bias), in float32 at least; 0 for padding, which keeps the state as it is."""
        wide = jnp.promote_types(dt.dtype, jnp.float32)
        dt = jax.nn.softplus(dt.astype(wide) + self.dt_bias[...].astype(wide))
        if self.config.min_dt is not None:
            dt = jnp.maximum(dt, self.config.min_dt)
        if lengths is not None:
            dt = jnp.where((jnp.arange(dt.shape[1]) < lengths[:, None])[..., None], dt, 0)
        return dt

    def _recur(self, streams: Streams, dt, a, segments, cache: MambaCache | None, lengths):
        """(y [B, S, H, P], the next cache) of tokens in their natural order."""
        taps, (batch, length) = self.config.conv_kernel, dt.shape[:2]
        kernels, biases = self._convs()
        before = MambaCache.empty(self.config, batch, streams.x.dtype) if cache is None else cache
        ids = None if segments is None else ids_from(segments, taps)
        x, b, c = jax.tree.map(partial(causal_conv, ids=ids), streams, before.conv, kernels, biases)
        if length == 1 and cache is not None:
            y, state = ssd_step(x[:, 0], dt[:, 0], a, b[:, 0], c[:, 0], self.D[...], before.state)
            y = y[:, None]
        else:
            starts = None if segments is None else starts_from(ids, taps)
            state = None if cache is None else before.state
            y, state = ssd_scan(x, dt, a, b, c, self.D[...], chunk=self.config.chunk, starts=starts, state=state)
        if cache is None:
            return y, None
        conv = jax.tree.map(partial(_last_inputs, lengths=lengths), before.conv, streams)
        names = MambaCache.dims()
        conv = Streams(*(constrain(last, *dims) for last, dims in zip(conv, names.conv, strict=True)))
        return y, MambaCache(conv, constrain(state, *names.state))


def _last_inputs(before: Array, new: Array, lengths: Int[Array, " B"] | None) -> Array:
    """The last K - 1 of the inputs `before` [B, K-1, ...] and, after them, the first `lengths` of `new` [B, S, ...]."""
    kept, joined = before.shape[1], jnp.concatenate([before, new.astype(before.dtype)], axis=1)
    if lengths is None:
        return joined[:, -kept:]
    ends = jnp.minimum(lengths, new.shape[1])
    return jax.vmap(lambda sample, end: jax.lax.dynamic_slice_in_dim(sample, end, kept))(joined, ends)


def _log_of_uniform(key: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
    return jnp.log(jax.random.uniform(key, shape, dtype, *INITIAL_A))


def _step_bias(key: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Array:
    """What softplus makes log-uniform steps of."""
    dt = jnp.exp(jax.random.uniform(key, shape, dtype, *map(math.log, INITIAL_DT)))
    return dt + jnp.log(-jnp.expm1(-dt))
