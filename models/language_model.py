"""What language models over a fused sequence of text and encoder tokens share: ports, stages, embedding, head, loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Self

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.decoder_config import DecoderConfig
from hetjax.models.dims import RESIDUAL, SEQUENCE, named
from hetjax.models.errors import ModelError
from hetjax.models.nemotron_h_config import NemotronHConfig
from hetjax.models.parallel.sharded_linear import sharded_linear
from hetjax.models.parallel.zigzag_order import SequenceOrder
from hetjax.models.parts.embed_sequence import embed_sequence
from hetjax.models.parts.linear import Linear
from hetjax.models.parts.loss import cross_entropy
from hetjax.models.parts.norms import RMSNorm
from hetjax.models.parts.pattern import PatternStack
from hetjax.models.parts.stack import Stack
from hetjax.models.parts.tied_head import tied_head
from hetjax.models.scopes import scope
from hetjax.models.stages import LayerCosts, StageCut, cut_stage

# B batch · S fused sequence · N M image and audio tokens a sample · D width · V vocabulary

LOSS_PORTS = ("labels", "loss_weights")


class FusedLanguageModel(nnx.Module):
    """Token embedding, layers, a final norm and a head; computes in the dtype of its weights.

    A model of this kind says which inputs it takes, and has `__call__` and `decode`.

    Attributes:
        embed_ports: what the first stage alone takes; only `tokens`, the first of them, is required.
        shared_ports: what every stage takes, and a call may leave out.
    """

    embed_ports: ClassVar[tuple[str, ...]]
    shared_ports: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        config: DecoderConfig | NemotronHConfig,
        layers: Callable[[nnx.Rngs], Stack | PatternStack],
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.cut = StageCut()
        embedding = named(nnx.initializers.normal(0.02), "vocab", "embed")
        self.embedding = nnx.Param(embedding(rngs.params(), (config.vocab_size, config.width), jnp.float32))
        self.layers = layers(rngs)
        self.norm = RMSNorm(config.width, epsilon=config.norm_epsilon, rngs=rngs)
        if not config.tie_embeddings:
            self.head = Linear({"embed": config.width}, {"vocab": config.vocab_size}, rngs=rngs)

    @property
    def input_ports(self) -> tuple[str, ...]:
        """Every input that this stage takes, in order."""
        entry = self.embed_ports if self.cut.first else ("hidden", "balance") if self._balances else ("hidden",)
        return entry + self.shared_ports + (LOSS_PORTS if self.cut.last else ())

    @property
    def optional_ports(self) -> tuple[str, ...]:
        """Those of `input_ports` that a call may leave out."""
        return (*(self.embed_ports[1:] if self.cut.first else ()), *self.shared_ports)

    @property
    def required_ports(self) -> tuple[str, ...]:
        """Those of `input_ports` that a call has to give."""
        return tuple(port for port in self.input_ports if port not in self.optional_ports)

    @property
    def port_dims(self) -> dict[str, tuple[str, ...]]:
        """The dims of the ports that run along the sequence."""
        return {
            **dict.fromkeys(("tokens", "segments", *LOSS_PORTS), SEQUENCE),
            "hidden": (*RESIDUAL, "embed"),
            "features": (*SEQUENCE, "embed"),
        }

    @property
    def input_ranges(self) -> dict[str, tuple[int, int]]:
        """The least and the largest id of tokens and labels."""
        ids = (0, self.config.vocab_size - 1)
        return {port: ids for port in ("tokens", "labels") if port in self.input_ports}

    @property
    def counted_by(self) -> dict[str, str]:
        """A label without weight in the loss may be any number, such as -100."""
        return {"labels": "loss_weights"} if self.cut.last else {}

    @property
    def independent_samples(self) -> bool:
        """No token of a sample sees another sample; tokens of all samples meet at the experts, where there are some."""
        return not self.config.has_experts

    def stage_costs(self, layers: Sequence[int]) -> LayerCosts:
        """Return the costs of stages, from the multiplications a token of each layer."""
        return LayerCosts(first=0, layers=tuple(layers), last=self.config.width * self.config.vocab_size)

    def stage(self, index: int, count: int, layers: Sequence[int] | None = None) -> Self:
        """Return pipeline stage `index` of `count`; `hidden` passes between stages: `hetjax.models.stages.cut_stage`.

        Raises ModelError for more than one stage with tied embeddings.
        """
        if self.config.tie_embeddings and count > 1:
            raise ModelError(
                f"{type(self).__name__}: with tie_embeddings, stages = {count} must be 1, since the first and the last "
                "stage would train one table on two meshes; set stage=1 and chunks=1, or tie_embeddings=False"
            )
        last = ("norm",) if self.config.tie_embeddings else ("norm", "head")
        return cut_stage(self, index, count, layers, first=("embedding",), last=last)

    def end_of_step(self) -> None:
        """Move what balances the experts; to be called after the last microbatch of a training step."""
        self.layers.end_of_step()

    @property
    def _balances(self) -> bool:
        """Whether stages pass a balance loss of experts."""
        return self.config.has_experts and self.config.experts.balance_loss > 0

    def _no_balance(self, x: Float[Array, "B S D"]) -> Float[Array, " B"]:
        return jnp.zeros(len(x), jnp.promote_types(x.dtype, jnp.float32))

    def _embed(
        self,
        tokens: Int[Array, "B S"],
        encoder_tokens: Mapping[str, Float[Array, "B _ D"] | None],
        positions: Mapping[str, Int[Array, "B _"] | None],
    ) -> Float[Array, "B S D"]:
        """The embedded sequence, with the tokens of each kind of encoder in their positions."""
        encoded = {kind: (new, positions[kind]) for kind, new in encoder_tokens.items()}
        return embed_sequence(self.embedding[...], tokens, encoded, owner=type(self).__name__)

    def _training_outputs(
        self,
        x: Float[Array, "B S D"],
        balance: Float[Array, " B"] | None,
        labels: Int[Array, "B S"] | None,
        loss_weights: Float[Array, "B S"] | None,
        order: SequenceOrder,
    ) -> dict[str, Array]:
        """{"loss"} of the last stage, {"hidden"}, and {"balance"} where stages pass it, of others.

        The last one also returns "features" [B, S, D], the positions as its head sees them, for edges that leave there.
        """
        if not self.cut.last:
            return {"hidden": x, "balance": balance} if self._balances else {"hidden": x}
        with scope("head"):
            x = self.norm(x)
        tied = self.config.tie_embeddings
        kernel = self.embedding if tied else self.head.kernel
        with scope("loss"):
            arranged = order.arrange(labels), order.arrange(loss_weights)
            loss = cross_entropy(x, kernel[...], *arranged, vocab_dim=0 if tied else 1)
            if self._balances:
                loss += jnp.sum(balance * loss_weights.sum(axis=1, dtype=balance.dtype))
        return {"loss": loss, "features": order.restore(x)}

    def _decoding_outputs(self, x: Float[Array, "B S D"], last: Int[Array, " B"] | None) -> dict[str, Array]:
        """{"logits"} of the positions `last` of the last stage; of others {"hidden"}, and a balance of zero."""
        if not self.cut.last:
            return {"hidden": x, **({"balance": self._no_balance(x)} if self._balances else {})}
        position = jnp.full(x.shape[0], x.shape[1] - 1) if last is None else last
        x = jnp.take_along_axis(x, position[:, None, None], axis=1)
        return {"logits": self._logits(x)[:, 0]}

    @scope("head")
    def _logits(self, x: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        x = self.norm(x)
        if self.config.tie_embeddings:
            return tied_head(x, self.embedding[...])
        return sharded_linear(x, self.head, given=RESIDUAL, wanted=SEQUENCE)[0]
