"""Decoder-only language model over a fused sequence of text and encoder tokens.

RMSNorm, rotary positions, grouped-query attention and SwiGLU: the layer of Llama (Touvron et al. 2023). With norms of
queries and keys it is that of Qwen3. A mixture of experts may stand in the place of SwiGLU, in all layers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.decoder_block import DecoderBlock
from hetjax.models.decoder_config import DecoderConfig
from hetjax.models.language_model import FusedLanguageModel
from hetjax.models.parallel.zigzag_order import causal_order
from hetjax.models.parts.attention import Cache
from hetjax.models.parts.rope import RopeTable, rope_table
from hetjax.models.parts.segments import positions_in_segments
from hetjax.models.parts.stack import Stack
from hetjax.models.stages import LayerCosts, check_inputs

# B batch · S fused sequence · N M image and audio tokens a sample · D width · V vocabulary
# L layers of this stage · T cache slots · G key heads · K head width


class LanguageModel(FusedLanguageModel):
    """Token embedding, `layers` decoder blocks, a final norm and a head; computes in the dtype of its weights."""

    embed_ports = ("tokens", "image_tokens", "image_positions", "audio_tokens", "audio_positions")
    shared_ports = ("segments",)

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        block = lambda layer_rngs: DecoderBlock(config, rngs=layer_rngs)  # noqa: E731
        super().__init__(config, lambda rngs: Stack(block, config.layers, rngs=rngs), rngs=rngs)

    @property
    def layer_costs(self) -> LayerCosts:
        """Multiplications a token in products with weights, to cut stages of equal cost."""
        config = self.config
        attention = 2 * config.width * config.head_dim * (config.heads + config.kv_heads)
        mlp = 3 * config.width * config.mlp_width
        if config.experts is not None:
            mlp = config.experts.multiplications(config.width, config.mlp_width)
        return self.stage_costs((attention + mlp,) * config.layers)

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
        """Return the summed loss of a batch, or the hidden state that the next stage takes.

        `labels[b, s]` is the token to predict from positions 0..s of sample b, and counts `loss_weights[b, s]`
        times; 0 for positions without a target, such as padding, which must come last in its sequence.
        Encoder tokens replace the embeddings of `tokens` at their positions; a position of S or more is dropped.
        `segments` holds an id a position, the same for the neighbouring positions of one packed document: tokens
        attend to their own document only, and its positions start from 0. Every stage takes it.

        All inputs have the natural order of positions. Where the layout in force splits the sequence, `hidden` alone
        is in the order of `hetjax.models.parallel.zigzag_order`, the same in every stage.

        Returns {"loss": sum over tokens of weight * cross entropy in nats, float32 at least, "features": [B, S, D] as
        the head sees them, in the natural order} from the whole model and the last stage, {"hidden": [B, S, D]} from
        other stages. With a sequence-balance loss of experts, each sequence's own, summed over layers, counts as often
        as the sequence has loss tokens: in the mean over the tokens of a batch it is the mean over its sequences,
        weighted by their tokens. Stages pass what is known of it as `balance`. Raises ModelError when an input that
        `input_ports` lists is missing (unless optional), or one that it does not list is given.
        """
        given = dict(
            tokens=tokens, labels=labels, loss_weights=loss_weights, image_tokens=image_tokens,
            image_positions=image_positions, audio_tokens=audio_tokens, audio_positions=audio_positions, hidden=hidden,
            balance=balance, segments=segments,
        )  # fmt: skip
        check_inputs(self, self.required_ports, given)
        order = causal_order((tokens if self.cut.first else hidden).shape[1])
        if segments is None:
            positions = jnp.asarray(order.positions)[None]
        else:
            positions, segments = order.arrange(positions_in_segments(segments)), order.arrange(segments)
        if self.cut.first:
            places = {"image": order.places(image_positions), "audio": order.places(audio_positions)}
            hidden = self._embed(order.arrange(tokens), {"image": image_tokens, "audio": audio_tokens}, places)
        rope = self._rope(positions, hidden.dtype)
        layer = lambda block, x, _: block(x, order=order, segments=segments, rope=rope)[::2]  # noqa: E731
        x, of_layers = self.layers.scan(layer, hidden)
        if self._balances:
            balance = of_layers.sum(axis=0) + (0 if balance is None else balance)
        return self._training_outputs(x, balance, labels, loss_weights, order)

    def init_cache(self, batch: int, length: int, dtype: jax.typing.DTypeLike) -> Cache:
        """Return empty keys and values of this stage's layers, each [L, batch, length, G, K]."""
        shape = (self.layers.count, batch, length, self.config.kv_heads, self.config.head_dim)
        return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def cache_dims(self) -> Cache:
        """Return the dim names of each array of the cache, in the cache's own tree."""
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
        """Run S tokens of each sample against the cache; a prefill has S > 1, and decoding goes on with S = 1.

        Token s of sample b writes its keys and values to slot positions[b, s] (dropped past the end of the
        cache) and attends to the slots 0..positions[b, s]. So a prompt may be padded at its end: later
        tokens overwrite the padding's slots before they attend to them. `image_positions` and
        `audio_positions` count from the first token of this call, as in `__call__`.

        The first stage takes `tokens` and encoder tokens, others `hidden`. The last stage returns
        {"logits": [B, V]} of token `last[b]` of each sample, or of token S-1 without `last`; others {"hidden"}, and
        `balance` where stages pass it in training: it is zero. Experts drop no token and count none.
        """
        given = dict(
            tokens=tokens, image_tokens=image_tokens, image_positions=image_positions, audio_tokens=audio_tokens,
            audio_positions=audio_positions, hidden=hidden, balance=balance,
        )  # fmt: skip
        check_inputs(self, ["tokens" if self.cut.first else "hidden"], given)
        if self.cut.first:
            places = {"image": image_positions, "audio": audio_positions}
            hidden = self._embed(tokens, {"image": image_tokens, "audio": audio_tokens}, places)
        rope = self._rope(positions, hidden.dtype)
        layer = lambda block, x, own: block(x, own, positions=positions, rope=rope)[:2]  # noqa: E731
        x, cache = self.layers.scan(layer, hidden, cache)
        return self._decoding_outputs(x, last), cache

    def _rope(self, positions: Int[Array, "B S"], dtype: jax.typing.DTypeLike) -> RopeTable:
        config = self.config
        return rope_table(positions, config.head_dim, config.rope_theta, dtype, config.rope_scaling)
