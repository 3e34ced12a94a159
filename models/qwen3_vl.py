"""Qwen3-VL's language model (Qwen team 2025): Qwen3 with positions of three axes; inner layers read images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hetjax.models.decoder import LanguageModel
from hetjax.models.dims import RESIDUAL, SEQUENCE, constrain
from hetjax.models.errors import ModelError
from hetjax.models.parallel.zigzag_order import SequenceOrder, causal_order
from hetjax.models.parts.attention import Cache
from hetjax.models.parts.rope import RopeTable, axes_rope_table
from hetjax.models.parts.scatter import scatter_tokens
from hetjax.models.parts.segments import positions_in_segments
from hetjax.models.qwen3_vl_config import Qwen3VlConfig
from hetjax.models.stages import check_inputs

# B batch · S fused sequence · N image tokens a sample · D width · L layers of this stage · T cache slots

AXES = 3
"""Of a position: time, row, column."""


class ShiftedCache(NamedTuple):
    """Keys and values, and by how much the positions of tokens behind a prompt differ from their slots.

    Attributes:
        layers: of the stack of layers.
        shift: an image takes as many positions as its longer side has tokens.
    """

    layers: Cache
    shift: Int[Array, " B"]


class Qwen3VlLanguageModel(LanguageModel):
    """A decoder that rotates by `coordinates`, and adds the image tokens of depth i behind its layer i.

    Without `coordinates` a token's time, row and column are its position, as in text alone.
    """

    config: Qwen3VlConfig
    embed_ports = ("tokens", "image_tokens", "image_positions")
    shared_ports = ("segments", "coordinates")

    @property
    def input_ports(self) -> tuple[str, ...]:
        """Every input that this stage takes, in order; image tokens of the depths that its layers add."""
        depths = self._depths
        places = ("image_positions",) if depths and not self.cut.first else ()
        return super().input_ports + places + depths

    @property
    def optional_ports(self) -> tuple[str, ...]:
        """Those of `input_ports` that a call may leave out."""
        own = {"image_positions", *self._depths} & {*self.input_ports}
        return (*dict.fromkeys((*super().optional_ports, *sorted(own))),)

    @property
    def port_dims(self) -> dict[str, tuple[str | None, ...]]:
        """The dims of the ports that run along the sequence."""
        return {**super().port_dims, "coordinates": (*SEQUENCE, None)}

    @property
    def _depths(self) -> tuple[str, ...]:
        ports = self.config.deepstack_ports
        return ports[self.cut.start : self.cut.start + self.layers.count]

    def __call__(
        self,
        tokens: Int[Array, "B S"] | None = None,
        labels: Int[Array, "B S"] | None = None,
        loss_weights: Float[Array, "B S"] | None = None,
        image_tokens: Float[Array, "B N D"] | None = None,
        image_positions: Int[Array, "B N"] | None = None,
        hidden: Float[Array, "B S D"] | None = None,
        balance: Float[Array, " B"] | None = None,
        segments: Int[Array, "B S"] | None = None,
        coordinates: Int[Array, "B S 3"] | None = None,
        deepstack_0: Float[Array, "B N D"] | None = None,
        deepstack_1: Float[Array, "B N D"] | None = None,
        deepstack_2: Float[Array, "B N D"] | None = None,
    ) -> dict[str, Array]:
        """Return the summed loss of a batch, or the hidden state that the next stage takes.

        Inputs and outputs are those of `hetjax.models.decoder.LanguageModel`. `coordinates` are the time, row and
        column of each position, counted anew in each document of `segments`; every stage takes them. "deepstack_i" are
        image tokens of depth i, for the positions `image_positions`; the stage that has layer i takes both.
        """
        given = dict(
            tokens=tokens, labels=labels, loss_weights=loss_weights, image_tokens=image_tokens,
            image_positions=image_positions, hidden=hidden, balance=balance, segments=segments,
            coordinates=coordinates, deepstack_0=deepstack_0, deepstack_1=deepstack_1, deepstack_2=deepstack_2,
        )  # fmt: skip
        check_inputs(self, self.required_ports, given)
        order = causal_order((tokens if self.cut.first else hidden).shape[1])
        if coordinates is None:
            plain = (
                jnp.asarray(order.positions)[None]
                if segments is None
                else order.arrange(positions_in_segments(segments))
            )
            coordinates = jnp.repeat(plain[..., None], AXES, axis=-1)
        else:
            coordinates = _arranged(coordinates, order)
        segments, places = order.arrange(segments), order.places(image_positions)
        if self.cut.first:
            hidden = self._embed(order.arrange(tokens), {"image": image_tokens}, {"image": places})
        rope = self._rope(coordinates, hidden.dtype)
        deepen = self._deepening(given, places)

        def layer(block, x, place):
            x, _, balance = block(x, order=order, segments=segments, rope=rope)
            return deepen(x, place), balance

        x, of_layers = self.layers.scan(layer, hidden, jnp.arange(self.layers.count))
        if self._balances:
            balance = of_layers.sum(axis=0) + (0 if balance is None else balance)
        return self._training_outputs(x, balance, labels, loss_weights, order)

    def init_cache(self, batch: int, length: int, dtype: jax.typing.DTypeLike) -> ShiftedCache:
        """Return empty keys and values of this stage's layers, each [L, batch, length, G, K], and no shift."""
        return ShiftedCache(super().init_cache(batch, length, dtype), jnp.zeros(batch, jnp.int32))

    def cache_dims(self) -> ShiftedCache:
        """Return the dim names of each array of the cache, in the cache's own tree."""
        return ShiftedCache(super().cache_dims(), ("batch",))

    def decode(
        self,
        cache: ShiftedCache,
        *,
        positions: Int[Array, "B S"],
        tokens: Int[Array, "B S"] | None = None,
        hidden: Float[Array, "B S D"] | None = None,
        balance: Float[Array, " B"] | None = None,
        image_tokens: Float[Array, "B N D"] | None = None,
        image_positions: Int[Array, "B N"] | None = None,
        coordinates: Int[Array, "B S 3"] | None = None,
        deepstack_0: Float[Array, "B N D"] | None = None,
        deepstack_1: Float[Array, "B N D"] | None = None,
        deepstack_2: Float[Array, "B N D"] | None = None,
        last: Int[Array, " B"] | None = None,
    ) -> tuple[dict[str, Array], ShiftedCache]:
        """Run S tokens of each sample against the cache; a prefill has S > 1, and decoding goes on with S = 1.

        As `hetjax.models.decoder.LanguageModel.decode`, but for this: a prefill takes `coordinates`, which behind a
        prompt go on by one each, also for padding, so that those of later tokens follow from their slots.
        """
        given = dict(
            tokens=tokens, image_tokens=image_tokens, image_positions=image_positions, hidden=hidden, balance=balance,
            coordinates=coordinates, deepstack_0=deepstack_0, deepstack_1=deepstack_1, deepstack_2=deepstack_2,
        )  # fmt: skip
        check_inputs(self, ["tokens" if self.cut.first else "hidden"], given)
        shift = cache.shift
        if coordinates is None:
            coordinates = jnp.repeat((positions + shift[:, None])[..., None], AXES, axis=-1)
        else:
            shift = (coordinates[:, -1, 0] - positions[:, -1]).astype(shift.dtype)
        if self.cut.first:
            hidden = self._embed(tokens, {"image": image_tokens}, {"image": image_positions})
        rope = self._rope(coordinates, hidden.dtype)
        deepen = self._deepening(given, image_positions)

        def layer(block, x, own):
            place, own = own
            x, own, _ = block(x, own, positions=positions, rope=rope)
            return deepen(x, place), own

        x, layers = self.layers.scan(layer, hidden, (jnp.arange(self.layers.count), cache.layers))
        return self._decoding_outputs(x, last), ShiftedCache(layers, shift)

    def _rope(self, positions: Int[Array, "B S 3"], dtype: jax.typing.DTypeLike) -> RopeTable:
        config = self.config
        exponents = [2 * pair / config.head_dim for pair in range(config.head_dim // 2)]
        return axes_rope_table(positions, config.rope_axes, exponents, config.rope_theta, dtype)

    def _deepening(self, given: Mapping[str, Array | None], places: Int[Array, "B N"] | None):
        """What adds the image tokens of a layer's depth to what is behind it, by the layer's place in this stage."""
        tokens = [given[port] for port in self._depths if given[port] is not None]
        if not tokens:
            return lambda x, place: x
        if len(tokens) < len(self._depths) or places is None:
            raise ModelError(
                f"Qwen3VlLanguageModel: give all of {', '.join(self._depths)} and image_positions, or none of them"
            )
        stacked = jnp.stack(tokens)

        def add(x, place):
            own = jax.lax.dynamic_index_in_dim(stacked, place, keepdims=False)
            return constrain(x + scatter_tokens(jnp.zeros_like(x), own, places), *RESIDUAL, "embed")

        # The branch of most layers costs nothing.
        return lambda x, place: jax.lax.cond(place < len(tokens), add, lambda x, place: x, x, place)


def _arranged(positions: Int[Array, "B S 3"], order: SequenceOrder) -> Int[Array, "B S 3"]:
    return jnp.stack([order.arrange(positions[..., axis]) for axis in range(AXES)], axis=-1)
