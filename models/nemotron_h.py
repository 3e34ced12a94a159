"""Hybrid language model over a fused sequence: Mamba-2, attention without positions, and mixtures of experts.

The Nemotron-H family (NVIDIA 2025, arXiv 2504.03624 and 2512.20848): one mixer a layer, and a pattern says which.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.dims import RESIDUAL, ROWS, named
from hetjax.models.errors import ModelError
from hetjax.models.nemotron_h_config import NemotronHConfig
from hetjax.models.nemotron_h_layer import HybridLayer, empty_layer_cache, layer_cache_dims, layer_cost
from hetjax.models.parallel.sharded_linear import project
from hetjax.models.parallel.zigzag_order import causal_order
from hetjax.models.parts.embed_sequence import fuse
from hetjax.models.parts.linear import Linear
from hetjax.models.parts.loss import cross_entropy
from hetjax.models.parts.norms import RMSNorm
from hetjax.models.parts.pattern import PatternStack, Tree
from hetjax.models.parts.pruned_rows import PrunedRows, pruned_rows
from hetjax.models.parts.tied_head import logits_of_table
from hetjax.models.stages import LayerCosts, StageCut, check_inputs, cut_stage

# B batch · S rows of the fused sequence, S' of them after pruning · N M image and audio tokens a sample
# P image tokens before pruning · D width · V vocabulary

EMBED_PORTS = ("tokens", "image_tokens", "audio_tokens", "audio_positions")
EVERYWHERE = ("segments", "image_positions", "image_kept")
LOSS_PORTS = ("labels", "loss_weights")


class NemotronH(nnx.Module):
    """Token embedding, a pattern of layers, a final norm and a head; computes in the dtype of its weights.

    Where an encoder prunes its tokens, `image_kept` says which of the P image tokens of a sample arrive, as indices
    into `image_positions`, ascending and padded by P. The rows of the others are taken out of the sequence, which
    becomes P - N rows shorter for every sample: see `hetjax.models.parts.video_pruning.compact_rows`.
    """

    def __init__(self, config: NemotronHConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.cut = StageCut()
        embedding = named(nnx.initializers.normal(0.02), "vocab", "embed")
        self.embedding = nnx.Param(embedding(rngs.params(), (config.vocab_size, config.width), jnp.float32))
        build = lambda letter, layer_rngs: HybridLayer(letter, config, rngs=layer_rngs)  # noqa: E731
        self.layers = PatternStack(config.pattern, build, rngs=rngs)
        self.norm = RMSNorm(config.width, epsilon=config.norm_epsilon, rngs=rngs)
        if not config.tie_embeddings:
            self.head = Linear({"embed": config.width}, {"vocab": config.vocab_size}, rngs=rngs)

    @property
    def input_ports(self) -> tuple[str, ...]:
        """Every input that this stage takes, in order."""
        entry = EMBED_PORTS if self.cut.first else ("hidden", "balance") if self._balances else ("hidden",)
        return entry + EVERYWHERE + (LOSS_PORTS if self.cut.last else ())

    @property
    def optional_ports(self) -> tuple[str, ...]:
        """Those of `input_ports` that a call may leave out."""
        return (*(EMBED_PORTS[1:] if self.cut.first else ()), *EVERYWHERE)

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
        return "E" not in self.config.pattern

    @property
    def layer_costs(self) -> LayerCosts:
        """Multiplications a row in products with weights, to cut stages of equal cost; one entry a row of `layers`."""
        costs = (sum(layer_cost(letter, self.config) for letter in unit) for unit in self.layers.rows)
        return LayerCosts(first=0, layers=tuple(costs), last=self.config.width * self.config.vocab_size)

    def stage(self, index: int, count: int, layers: Sequence[int] | None = None) -> NemotronH:
        """Pipeline stage `index` of `count`: `hidden` passes between stages; see `hetjax.models.stages.cut_stage`.

        What is shared out are rows of `layers`, each a repeat of a unit of the pattern, not single layers. Raises
        ModelError for more than one stage with tied embeddings.
        """
        if self.config.tie_embeddings and count > 1:
            raise ModelError(
                f"NemotronH: with tie_embeddings, stages = {count} must be 1, since the first and the last stage would "
                "train one table on two meshes; set stage=1 and chunks=1, or tie_embeddings=False"
            )
        last = ("norm",) if self.config.tie_embeddings else ("norm", "head")
        return cut_stage(self, index, count, layers, first=("embedding",), last=last)

    def __call__(
        self,
        tokens: Int[Array, "B S"] | None = None,
        labels: Int[Array, "B S"] | None = None,
        loss_weights: Float[Array, "B S"] | None = None,
        image_tokens: Float[Array, "B N D"] | None = None,
        image_positions: Int[Array, "B P"] | None = None,
        audio_tokens: Float[Array, "B M D"] | None = None,
        audio_positions: Int[Array, "B M"] | None = None,
        hidden: Float[Array, "B S' D"] | None = None,
        balance: Float[Array, " B"] | None = None,
        segments: Int[Array, "B S"] | None = None,
        image_kept: Int[Array, "B N"] | None = None,
    ) -> dict[str, Array]:
        """The summed loss of a batch, or the hidden state that the next stage takes.

        Inputs and outputs are those of `hetjax.models.decoder.LanguageModel`. With `segments`, states of Mamba start
        anew with each document, and rows attend to their own. With `image_kept`, all inputs have the rows of the
        sequence before pruning, and `hidden` those after it; every stage takes it with `image_positions`.

        Returns {"loss": sum over tokens of weight * cross entropy in nats, float32 at least, with the balance
        loss of each sequence for each of its tokens} from the whole model and the last stage, {"hidden": [B, S', D]},
        and "balance" where there is one, from other stages. Raises ModelError when an input that `input_ports`
        lists is missing (unless optional), or one that it does not list is given.
        """
        given = dict(
            tokens=tokens, labels=labels, loss_weights=loss_weights, image_tokens=image_tokens,
            image_positions=image_positions, audio_tokens=audio_tokens, audio_positions=audio_positions, hidden=hidden,
            balance=balance, segments=segments, image_kept=image_kept,
        )  # fmt: skip
        check_inputs(self, [port for port in self.input_ports if port not in self.optional_ports], given)
        pruned = self._pruned(image_positions, image_kept, tokens, hidden)
        tokens, labels, segments = map(pruned.take, (tokens, labels, segments))
        loss_weights = pruned.weights(loss_weights)
        order = causal_order((tokens if self.cut.first else hidden).shape[1])
        segments = order.arrange(segments)
        if self.cut.first:
            encoded = {
                "image": (image_tokens, order.places(pruned.image(image_positions))),
                "audio": (audio_tokens, order.places(pruned.other(audio_positions))),
            }
            hidden = fuse(self.embedding[...], order.arrange(tokens), encoded, owner="NemotronH")
        step = lambda layer, x, _: layer(x, training=True, order=order, segments=segments)[::2]  # noqa: E731
        x, of_layers = self.layers.scan(step, hidden)
        if self._balances:
            balance = self._no_balance(x) if balance is None else balance
            balance = sum((each.reshape(-1, len(x)).sum(axis=0) for each in jax.tree.leaves(of_layers)), balance)
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
        return "E" in self.config.pattern and self.config.experts.balance_loss > 0

    def _no_balance(self, x: Float[Array, "B S D"]) -> Float[Array, " B"]:
        return jnp.zeros(len(x), jnp.promote_types(x.dtype, jnp.float32))

    def init_cache(self, batch: int, length: int, dtype: jax.typing.DTypeLike) -> Tree:
        """What this stage's layers keep before the first row: keys and values, rows of the convolution, states.

        By group and layer of the pattern, each array leading with the layers dims of its group; states are float32 at
        least, the others in `dtype`.
        """
        return self.layers.tree(
            lambda letter, sizes: empty_layer_cache(letter, sizes, self.config, batch, length, dtype)
        )

    def cache_dims(self) -> Tree:
        """The dim names of each array of the cache, in the cache's own tree."""
        return self.layers.tree(layer_cache_dims)

    def decode(
        self,
        cache: Tree,
        *,
        positions: Int[Array, "B S"],
        tokens: Int[Array, "B S"] | None = None,
        hidden: Float[Array, "B S' D"] | None = None,
        balance: Float[Array, " B"] | None = None,
        image_tokens: Float[Array, "B N D"] | None = None,
        image_positions: Int[Array, "B P"] | None = None,
        audio_tokens: Float[Array, "B M D"] | None = None,
        audio_positions: Int[Array, "B M"] | None = None,
        image_kept: Int[Array, "B N"] | None = None,
        lengths: Int[Array, " B"] | None = None,
        last: Int[Array, " B"] | None = None,
    ) -> tuple[dict[str, Array], Tree]:
        """Run S rows of each sample against the cache; a prefill has S > 1 and a step S = 1.

        As `hetjax.models.decoder.LanguageModel.decode`, but for this: where prompts are padded at their ends, every
        stage takes their `lengths`, for a state of Mamba, unlike keys and values, has no slot that a later row could
        overwrite. What comes out holds the lengths, in rows after pruning, as "lengths". With `image_kept`, `positions`
        must be those of the first rows.
        """
        given = dict(
            tokens=tokens, image_tokens=image_tokens, image_positions=image_positions, audio_tokens=audio_tokens,
            audio_positions=audio_positions, hidden=hidden, balance=balance, image_kept=image_kept,
        )  # fmt: skip
        check_inputs(self, ["tokens" if self.cut.first else "hidden"], given)
        pruned = self._pruned(image_positions, image_kept, tokens, hidden)
        tokens, lengths, last = pruned.take(tokens), pruned.lengths(lengths), pruned.row(last)
        if self.cut.first:
            images, sound = pruned.image(image_positions), pruned.other(audio_positions)
            encoded = {"image": (image_tokens, images), "audio": (audio_tokens, sound)}
            hidden = fuse(self.embedding[...], tokens, encoded, owner="NemotronH")
        positions = positions[:, : hidden.shape[1]]
        step = lambda layer, x, own: layer(x, training=False, positions=positions, lengths=lengths, cache=own)[:2]  # noqa: E731
        x, cache = self.layers.scan(step, hidden, cache)
        out = {} if lengths is None else {"lengths": lengths}
        if not self.cut.last:
            balances = {"balance": self._no_balance(x)} if self._balances else {}
            return {"hidden": x, **balances, **out}, cache
        row = jnp.full(x.shape[0], x.shape[1] - 1) if last is None else last
        x = jnp.take_along_axis(x, row[:, None, None], axis=1)
        return {"logits": self._logits(x)[:, 0], **out}, cache

    def _pruned(self, image_positions, image_kept, tokens, hidden) -> PrunedRows:
        rows = {"before": tokens.shape[1]} if self.cut.first else {"after": hidden.shape[1]}
        return pruned_rows(image_positions, image_kept, **rows, owner="NemotronH")

    def _logits(self, x: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        x = self.norm(x)
        if self.config.tie_embeddings:
            return logits_of_table(x, self.embedding[...])
        return project(x, self.head, given=RESIDUAL, wanted=ROWS)[0]
