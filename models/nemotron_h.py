"""Hybrid language model over a fused sequence: Mamba-2, attention without positions, and mixtures of experts.

The Nemotron-H family (NVIDIA 2025, arXiv 2504.03624 and 2512.20848): one mixer a layer, and a pattern says which.
"""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.language_model import FusedLanguageModel
from hetjax.models.nemotron_h_config import NemotronHConfig
from hetjax.models.nemotron_h_layer import HybridLayer, LayerCache, empty_layer_cache, layer_cache_dims, layer_cost
from hetjax.models.parallel.zigzag_order import causal_order
from hetjax.models.parts.pattern import PatternStack, Tree
from hetjax.models.parts.pruned_sequence import PrunedSequence, pruned_sequence
from hetjax.models.scopes import scope
from hetjax.models.stages import LayerCosts, check_inputs

# B batch · S fused sequence, S' the same after pruning · N M image and audio tokens a sample
# P image tokens before pruning · D width · V vocabulary


class NemotronH(FusedLanguageModel):
    """Token embedding, a pattern of layers, a final norm and a head; computes in the dtype of its weights.

    Where an encoder prunes its tokens, `image_kept` says which of the P image tokens of a sample arrive, as indices
    into `image_positions`, ascending and padded by P. The positions of the others are taken out of the sequence, which
    becomes P - N shorter for every sample: see `hetjax.models.parts.video_pruning.compact_sequence`.
    """

    embed_ports = ("tokens", "image_tokens", "audio_tokens", "audio_positions")
    shared_ports = ("segments", "image_positions", "image_kept")

    def __init__(self, config: NemotronHConfig, *, rngs: nnx.Rngs):
        build = lambda letter, layer_rngs: HybridLayer(letter, config, rngs=layer_rngs)  # noqa: E731
        super().__init__(config, lambda rngs: PatternStack(config.pattern, build, rngs=rngs), rngs=rngs)

    @property
    def layer_costs(self) -> LayerCosts:
        """Multiplications a token in products with weights, to cut stages of equal cost; one entry a unit of `layers`.

        What stages share out are these units, each a repeat of a part of the pattern, and not single layers.
        """
        return self.stage_costs([sum(layer_cost(letter, self.config) for letter in unit) for unit in self.layers.units])

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
        """Return the summed loss of a batch, or the hidden state that the next stage takes.

        Inputs and outputs are those of `hetjax.models.decoder.LanguageModel`. With `segments`, states of Mamba start
        anew with each document, and tokens attend to their own. With `image_kept`, all inputs have the positions of the
        sequence before pruning, and `hidden` those after it; every stage takes it with `image_positions`.

        Returns {"loss": sum over tokens of weight * cross entropy in nats, float32 at least, with the balance
        loss of each sequence for each of its tokens, "features": [B, S', D] as the head sees them} from the whole model
        and the last stage, {"hidden": [B, S', D]}, and "balance" where there is one, from other stages. Raises
        ModelError when an input that `input_ports` lists is missing (unless optional), or one that it does not list is
        given.
        """
        given = dict(
            tokens=tokens, labels=labels, loss_weights=loss_weights, image_tokens=image_tokens,
            image_positions=image_positions, audio_tokens=audio_tokens, audio_positions=audio_positions, hidden=hidden,
            balance=balance, segments=segments, image_kept=image_kept,
        )  # fmt: skip
        check_inputs(self, self.required_ports, given)
        pruned = self._pruned(image_positions, image_kept, tokens, hidden)
        tokens, labels, segments = map(pruned.take, (tokens, labels, segments))
        loss_weights = pruned.weights(loss_weights)
        order = causal_order((tokens if self.cut.first else hidden).shape[1])
        segments = order.arrange(segments)
        if self.cut.first:
            places = {
                "image": order.places(pruned.image(image_positions)),
                "audio": order.places(pruned.other(audio_positions)),
            }
            hidden = self._embed(order.arrange(tokens), {"image": image_tokens, "audio": audio_tokens}, places)
        layer = lambda layer, x, _: layer(x, training=True, order=order, segments=segments)[::2]  # noqa: E731
        x, of_layers = self.layers.scan(layer, hidden)
        if self._balances:
            balance = self._no_balance(x) if balance is None else balance
            balance = sum((each.reshape(-1, len(x)).sum(axis=0) for each in jax.tree.leaves(of_layers)), balance)
        return self._training_outputs(x, balance, labels, loss_weights, order)

    def init_cache(self, batch: int, length: int, dtype: jax.typing.DTypeLike) -> Tree[LayerCache]:
        """Return what this stage's layers keep before the first token: keys, values, inputs of the convolution, states.

        By group and layer of the pattern, each array leading with the layers dims of its group; states are float32 at
        least, the others in `dtype`.
        """
        return self.layers.tree(
            lambda letter, sizes: empty_layer_cache(letter, sizes, self.config, batch, length, dtype)
        )

    def cache_dims(self) -> Tree[LayerCache]:
        """Return the dim names of each array of the cache, in the cache's own tree."""
        return self.layers.tree(layer_cache_dims)

    def decode(
        self,
        cache: Tree[LayerCache],
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
    ) -> tuple[dict[str, Array], Tree[LayerCache]]:
        """Run S tokens of each sample against the cache; a prefill has S > 1, and decoding goes on with S = 1.

        As `hetjax.models.decoder.LanguageModel.decode`, but for this: where prompts are padded at their ends, every
        stage takes their `lengths`, for a state of Mamba, unlike keys and values, has no slot that a later token could
        overwrite. The outputs hold the lengths after pruning, as "lengths". With `image_kept`, `positions`
        must be those of the first tokens.
        """
        given = dict(
            tokens=tokens, image_tokens=image_tokens, image_positions=image_positions, audio_tokens=audio_tokens,
            audio_positions=audio_positions, hidden=hidden, balance=balance, image_kept=image_kept,
        )  # fmt: skip
        check_inputs(self, ["tokens" if self.cut.first else "hidden"], given)
        pruned = self._pruned(image_positions, image_kept, tokens, hidden)
        tokens, lengths, last = pruned.take(tokens), pruned.lengths(lengths), pruned.position(last)
        if self.cut.first:
            places = {"image": pruned.image(image_positions), "audio": pruned.other(audio_positions)}
            hidden = self._embed(tokens, {"image": image_tokens, "audio": audio_tokens}, places)
        positions = positions[:, : hidden.shape[1]]

        def layer(layer: HybridLayer, x: Float[Array, "B S D"], own: LayerCache):
            return layer(x, training=False, positions=positions, lengths=lengths, cache=own)[:2]

        x, cache = self.layers.scan(layer, hidden, cache)
        return {**self._decoding_outputs(x, last), **({} if lengths is None else {"lengths": lengths})}, cache

    @scope("video_pruning")
    def _pruned(self, image_positions, image_kept, tokens, hidden) -> PrunedSequence:
        length = {"before": tokens.shape[1]} if self.cut.first else {"after": hidden.shape[1]}
        return pruned_sequence(image_positions, image_kept, **length, owner="NemotronH")
