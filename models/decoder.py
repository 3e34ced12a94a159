"""Decoder-only language model over a fused sequence of text and encoder tokens.

RMSNorm, rotary positions, grouped-query attention and SwiGLU: the layer of Llama (Touvron et al. 2023). With norms of
queries and keys it is that of Qwen3. A mixture of experts may stand in the place of SwiGLU, in all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.decoder_config import DecoderConfig
from hetjax.models.dims import RESIDUAL, ROWS, constrain, named
from hetjax.models.errors import ModelError
from hetjax.models.parallel.sharded_embedding import look_up
from hetjax.models.parallel.sharded_linear import project
from hetjax.models.parallel.zigzag_order import causal_order
from hetjax.models.parts.attention import Attention, Cache
from hetjax.models.parts.linear import Linear
from hetjax.models.parts.loss import cross_entropy
from hetjax.models.parts.mlp import SwiGLU
from hetjax.models.parts.moe import MoE
from hetjax.models.parts.norms import RMSNorm
from hetjax.models.parts.rope import RopeTable, rope_table
from hetjax.models.parts.scatter import scatter_tokens
from hetjax.models.parts.segments import positions_in_segments
from hetjax.models.parts.stack import Stack
from hetjax.models.parts.tied_head import logits_of_table
from hetjax.models.remat import point
from hetjax.models.stages import LayerCosts, StageCut, check_inputs, cut_stage

# B batch · S fused sequence · N M image and audio tokens a sample · D width · V vocabulary
# L layers of this stage · T cache slots · G key heads · K head width

EMBED_PORTS = ("tokens", "image_tokens", "image_positions", "audio_tokens", "audio_positions")
LOSS_PORTS = ("labels", "loss_weights")


class DecoderBlock(nnx.Module):
    """Pre-norm causal attention and SwiGLU or a mixture of experts, each added to the residual stream."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.width, epsilon=config.norm_epsilon, rngs=rngs)
        of_heads = config.norm_epsilon if config.query_key_norm else None
        self.attention = Attention(
            config.width, config.heads, config.kv_heads, config.head_dim, head_norm_epsilon=of_heads, rngs=rngs
        )
        self.mlp_norm = RMSNorm(config.width, epsilon=config.norm_epsilon, rngs=rngs)
        if config.experts is None:
            self.mlp = SwiGLU(config.width, config.mlp_width, rngs=rngs)
        else:
            self.mlp = MoE(config.width, config.mlp_width, config.experts, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B S D"], cache: Cache | None = None, **where: Any
    ) -> tuple[Float[Array, "B S D"], Cache | None, Float[Array, " B"] | None]:
        """(x after the layer, cache, balance loss of each sequence); `where` says which rows x has, as for `Attention`.

        Without a cache this is training, where experts are counted and may drop rows.
        """
        training, balance = cache is None, None
        attended, cache = self.attention(self.attention_norm(x), cache=cache, **where)
        x = constrain(x + point(attended, "attention"), *RESIDUAL, "embed")
        new = self.mlp_norm(x)
        if isinstance(self.mlp, MoE):
            new, balance = self.mlp(new, order=where.get("order"), training=training)
        else:
            new = self.mlp(new)
        return constrain(x + point(new, "mlp"), *RESIDUAL, "embed"), cache, balance

    def end_of_step(self) -> None:
        """Move what balances the experts."""
        if isinstance(self.mlp, MoE):
            self.mlp.end_of_step()


class LanguageModel(nnx.Module):
    """Token embedding, `layers` decoder blocks, a final norm and a head; computes in the dtype of its weights."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.cut = StageCut()
        embedding = named(nnx.initializers.normal(0.02), "vocab", "embed")
        self.embedding = nnx.Param(embedding(rngs.params(), (config.vocab_size, config.width), jnp.float32))
        self.layers = Stack(lambda layer_rngs: DecoderBlock(config, rngs=layer_rngs), config.layers, rngs=rngs)
        self.norm = RMSNorm(config.width, epsilon=config.norm_epsilon, rngs=rngs)
        if not config.tie_embeddings:
            self.head = Linear({"embed": config.width}, {"vocab": config.vocab_size}, rngs=rngs)

    @property
    def input_ports(self) -> tuple[str, ...]:
        """Every input that this stage takes, in order."""
        entry = EMBED_PORTS if self.cut.first else ("hidden", "balance") if self._balances else ("hidden",)
        return entry + ("segments",) + (LOSS_PORTS if self.cut.last else ())

    @property
    def optional_ports(self) -> tuple[str, ...]:
        """Those of `input_ports` that a call may leave out."""
        return (*(EMBED_PORTS[1:] if self.cut.first else ()), "segments")

    @property
    def port_dims(self) -> dict[str, tuple[str, ...]]:
        """The dims of the ports that run along the sequence."""
        return {
            **dict.fromkeys(("tokens", "segments", *LOSS_PORTS), ROWS),
            "hidden": (*RESIDUAL, "embed"),
        }

    @property
    def independent_samples(self) -> bool:
        """No row of a sample sees another sample; rows of all samples meet at the experts, where there are some."""
        return self.config.experts is None

    @property
    def layer_costs(self) -> LayerCosts:
        """Multiplications a row in products with weights, to cut stages of equal cost."""
        config = self.config
        attention = 2 * config.width * config.head_dim * (config.heads + config.kv_heads)
        mlp = 3 * config.width * config.mlp_width
        if config.experts is not None:
            mlp = config.experts.multiplications(config.width, config.mlp_width)
        layer = attention + mlp
        return LayerCosts(first=0, layers=(layer,) * config.layers, last=config.width * config.vocab_size)

    def stage(self, index: int, count: int, layers: Sequence[int] | None = None) -> LanguageModel:
        """Pipeline stage `index` of `count`: `hidden` passes between stages; see `hetjax.models.stages.cut_stage`.

        Raises ModelError for more than one stage with tied embeddings.
        """
        if self.config.tie_embeddings and count > 1:
            raise ModelError(
                f"LanguageModel: with tie_embeddings, stages = {count} must be 1, since the first and the last stage "
                "would train one table on two meshes; set stage=1 and chunks=1, or tie_embeddings=False"
            )
        last = ("norm",) if self.config.tie_embeddings else ("norm", "head")
        return cut_stage(self, index, count, layers, first=("embedding",), last=last)

    def __call__(
        self,
        tokens: Int[Array, "B S"] | None = None,
        labels: Int[Array, "B S"] | None = None,
        loss_weights: Float[Array, "B S"] | None = None,
        image_tokens: Float[Array, "B N D"] | None = None,
        image_positions: Int[Array, "B N"] | None = None,
        audio_tokens: Float[Array, "B M D"] | None = None,
        audio_positions: Int[Array, "B M"] | None = None,
        hidden: Float[Array, "B S D"] | None = None,
        balance: Float[Array, " B"] | None = None,
        segments: Int[Array, "B S"] | None = None,
    ) -> dict[str, Array]:
        """The summed loss of a batch, or the hidden state that the next stage takes.

        `labels[b, s]` is the token to predict from rows 0..s of sample b, and counts `loss_weights[b, s]`
        times; 0 for rows without a target, such as padding, which must come last in its sequence.
        Encoder tokens replace the rows of `tokens` at their positions; a position of S or more is dropped.
        `segments` holds an id a row, the same for the neighbouring rows of one packed document: rows attend
        to their own document only, and its positions start from 0. Every stage takes it.

        All inputs have the natural order of rows. Where the layout in force splits the sequence, the rows of
        `hidden` alone are in the order of `hetjax.models.parallel.zigzag_order`, the same in every stage.

        Returns {"loss": sum over tokens of weight * cross entropy in nats, float32 at least} from the
        whole model and the last stage, {"hidden": [B, S, D]} from other stages. With a sequence-balance loss of
        experts, each sequence's own, summed over layers, counts as often as the sequence has loss tokens: in the
        mean over the tokens of a batch it is the mean over its sequences, weighted by their tokens. Stages
        pass what is known of it as `balance`. Raises ModelError when an
        input that `input_ports` lists is missing (unless optional), or one that it does not list is given.
        """
        given = dict(
            tokens=tokens, labels=labels, loss_weights=loss_weights, image_tokens=image_tokens,
            image_positions=image_positions, audio_tokens=audio_tokens, audio_positions=audio_positions, hidden=hidden,
            balance=balance, segments=segments,
        )  # fmt: skip
        check_inputs(self, [port for port in self.input_ports if port not in self.optional_ports], given)
        order = causal_order((tokens if self.cut.first else hidden).shape[1])
        if segments is None:
            positions = jnp.asarray(order.rows)[None]
        else:
            positions, segments = order.arrange(positions_in_segments(segments)), order.arrange(segments)
        image_rows, audio_rows = order.places(image_positions), order.places(audio_positions)
        x = self._embed(order.arrange(tokens), image_tokens, image_rows, audio_tokens, audio_rows, hidden)
        rope = self._rope(positions, x.dtype)
        step = lambda block, x, _: block(x, order=order, segments=segments, rope=rope)[::2]  # noqa: E731
        x, of_layers = self.layers.scan(step, x)
        if self._balances:
            balance = of_layers.sum(axis=0) + (0 if balance is None else balance)
        if not self.cut.last:
            return {"hidden": x, "balance": balance} if self._balances else {"hidden": x}
        loss = cross_entropy(self._logits(x), order.arrange(labels), order.arrange(loss_weights))
        if self._balances:
            loss += jnp.sum(balance * loss_weights.sum(axis=1, dtype=balance.dtype))
        return {"loss": loss}

    def end_of_step(self) -> None:
        """To be called after the last microbatch of a training step: moves what balances the experts."""
        self.layers.end_of_step()

    @property
    def _balances(self) -> bool:
        return self.config.experts is not None and self.config.experts.balance_loss > 0

    def init_cache(self, batch: int, length: int, dtype: jax.typing.DTypeLike) -> Cache:
        """Empty keys and values of this stage's layers, each [L, batch, length, G, K]."""
        shape = (self.layers.count, batch, length, self.config.kv_heads, self.config.head_dim)
        return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def cache_dims(self) -> Cache:
        """The dim names of each array of the cache, in the cache's own tree."""
        dims = ("layers", "batch", "seq", "kv_heads", "head_dim")
        return Cache(dims, dims)

    def decode(
        self,
        cache: Cache,
        *,
        positions: Int[Array, "B S"],
        tokens: Int[Array, "B S"] | None = None,
        hidden: Float[Array, "B S D"] | None = None,
        balance: Float[Array, " B"] | None = None,
        image_tokens: Float[Array, "B N D"] | None = None,
        image_positions: Int[Array, "B N"] | None = None,
        audio_tokens: Float[Array, "B M D"] | None = None,
        audio_positions: Int[Array, "B M"] | None = None,
        last: Int[Array, " B"] | None = None,
    ) -> tuple[dict[str, Array], Cache]:
        """Run S rows of each sample against the cache; a prefill has S > 1 and a step S = 1.

        Row s of sample b writes its keys and values to slot positions[b, s] (dropped past the end of the
        cache) and attends to the slots 0..positions[b, s]. So a prompt may be padded at its end: later
        rows overwrite the padding's slots before they attend to them. `image_positions` and
        `audio_positions` are rows of this call, as in `__call__`.

        The first stage takes `tokens` and encoder tokens, others `hidden`. The last stage returns
        {"logits": [B, V]} of row `last[b]` of each sample, or of row S-1 without `last`; others {"hidden"}, and
        `balance` where stages pass it in training: it is zero. Experts drop no row and count none.
        """
        given = dict(
            tokens=tokens, image_tokens=image_tokens, image_positions=image_positions, audio_tokens=audio_tokens,
            audio_positions=audio_positions, hidden=hidden, balance=balance,
        )  # fmt: skip
        check_inputs(self, ["tokens" if self.cut.first else "hidden"], given)
        x = self._embed(tokens, image_tokens, image_positions, audio_tokens, audio_positions, hidden)
        rope = self._rope(positions, x.dtype)
        x, cache = self.layers.scan(
            lambda block, x, layer_cache: block(x, layer_cache, positions=positions, rope=rope)[:2], x, cache
        )
        if not self.cut.last:
            wide = jnp.promote_types(x.dtype, jnp.float32)
            return {"hidden": x, **({"balance": jnp.zeros(x.shape[0], wide)} if self._balances else {})}, cache
        row = jnp.full(x.shape[0], x.shape[1] - 1) if last is None else last
        x = jnp.take_along_axis(x, row[:, None, None], axis=1)
        return {"logits": self._logits(x)[:, 0]}, cache

    def _embed(self, tokens, image_tokens, image_positions, audio_tokens, audio_positions, hidden):
        if not self.cut.first:
            return hidden
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ModelError(f"LanguageModel: tokens are {tokens.dtype}; give integers")
        x = constrain(look_up(self.embedding[...], tokens), *RESIDUAL, "embed")
        for kind, new, rows in (("image", image_tokens, image_positions), ("audio", audio_tokens, audio_positions)):
            if (new is None) != (rows is None):
                raise ModelError(f"LanguageModel: give both of {kind}_tokens and {kind}_positions, or neither")
            if new is not None:
                if new.shape[:2] != rows.shape:
                    raise ModelError(
                        f"LanguageModel: {new.shape[1]} {kind}_tokens a sample, but {rows.shape[1]} {kind}_positions; "
                        "each encoder token needs the row that it takes"
                    )
                x = constrain(scatter_tokens(x, new, rows), *RESIDUAL, "embed")
        return x

    def _rope(self, positions: Int[Array, "B S"], dtype: jax.typing.DTypeLike) -> RopeTable:
        config = self.config
        return rope_table(positions, config.head_dim, config.rope_theta, dtype, config.rope_scaling)

    def _logits(self, x: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        x = self.norm(x)
        if self.config.tie_embeddings:
            return logits_of_table(x, self.embedding[...])
        return project(x, self.head, given=RESIDUAL, wanted=ROWS)[0]
