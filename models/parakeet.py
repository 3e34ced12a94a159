"""Parakeet: audio to tokens of the language model's width, by a FastConformer (Rekesh et al. 2023)."""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.dims import SEQUENCE, constrain
from hetjax.models.encoder import Encoder
from hetjax.models.errors import ModelError
from hetjax.models.parakeet_config import ParakeetConfig
from hetjax.models.parallel.per_device import per_device
from hetjax.models.parts.audio_clips import HOP, halved, tokens_of_clip
from hetjax.models.parts.conformer.attention import encode_distances
from hetjax.models.parts.conformer.block import ConformerBlock
from hetjax.models.parts.conformer.dims import CLIPS, TOKENS
from hetjax.models.parts.conformer.subsampling import Subsampling
from hetjax.models.parts.mel import log_mel
from hetjax.models.parts.projector import Projector
from hetjax.models.parts.stack import Stack
from hetjax.models.scopes import scope
from hetjax.models.stages import StageCut, check_inputs

# B batch · C clips a sample · T samples of the longest clip · F frames of it · N tokens of it · M mel bins
# D width of the encoder · E width of the language model, or D without a projector


class ParakeetEncoder(Encoder):
    """Log-mel features, subsampling by eight, `layers` FastConformer layers and, where asked for, a projector.

    Every clip is a sequence of its own: no token sees another clip, but for statistics of the batch where the config
    asks for them. Features are float32 at least, all else is in the dtype of the weights. A layout's context axis
    shares out the clips of a sample.
    """

    first_stage, last_stage = ("subsampling",), ("projector",)

    def __init__(self, config: ParakeetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.cut = StageCut()
        self.subsampling = Subsampling(config.mel_bins, config.subsampling_channels, config.width, rngs=rngs)
        self.layers = Stack(lambda layer_rngs: ConformerBlock(config, rngs=layer_rngs), config.layers, rngs=rngs)
        if config.projector_width is not None:
            self.projector = Projector(
                config.width, config.projector_width, config.output_width, norm_epsilon=config.norm_epsilon, rngs=rngs
            )

    @property
    def input_ports(self) -> tuple[str, ...]:
        """Every input that this stage takes, in order."""
        return ("waveforms" if self.cut.first else "hidden", "lengths")

    @property
    def port_dims(self) -> dict[str, tuple[str | None, ...]]:
        """The dims of all ports: clips ride where sequences do."""
        return {
            "waveforms": TOKENS,
            "lengths": CLIPS,
            "hidden": (*TOKENS, "embed"),
            "tokens": (*SEQUENCE, "embed"),
        }

    @property
    def independent_samples(self) -> bool:
        """Whether no token of a sample sees another sample: unless norms are by the statistics of the batch."""
        return self.config.batch_norm == "eval"

    def multiplications(self) -> tuple[float, float, float]:
        """Return those of (subsampling, each layer, the projector), a token."""
        config = self.config
        width, channels, bins = config.width, config.subsampling_channels, config.mel_bins
        # Cells a token: 4 frames of half the bins, 2 of a quarter, 1 of an eighth.
        cells = 9 * channels * 2 * bins + (9 + channels) * channels * (bins // 2 + bins // 8)
        layer = 4 * width * config.mlp_width + 7 * width**2
        projector = (config.projector_width or 0) * (width + (config.output_width or 0))
        return cells + channels * bins // 8 * width, layer, projector

    def __call__(
        self,
        waveforms: Float[Array, "B C T"] | None = None,
        lengths: Int[Array, "B C"] | None = None,
        hidden: Float[Array, "B C N D"] | None = None,
    ) -> dict[str, Float[Array, "B ..."]]:
        """Return {"tokens": [B, C*N, E]} of audio clips at 16 kHz, or {"hidden": [B, C, N, D]} before the last stage.

        N = tokens_of_clip(T). `lengths` are the valid samples of each clip, 0 for no clip; every stage takes them. Clip
        c of a sample has the tokens from c*N on, as many as `hetjax.models.parts.audio_clips.tokens_of_clip` says of
        its length; the rest of its N are finite and mean nothing. Raises ModelError where inputs lack or do not fit.
        """
        check_inputs(self, self.input_ports, {"waveforms": waveforms, "lengths": lengths, "hidden": hidden})
        x = self._enter(waveforms, lengths) if self.cut.first else hidden
        x = self._run_layers(x, tokens_of_clip(lengths))
        if not self.cut.last:
            return {"hidden": x}
        x = self._project(x)
        return {"tokens": constrain(x.reshape(x.shape[0], -1, x.shape[-1]), *SEQUENCE, "embed")}

    def encode(self, features: Float[Array, "B C F M"], frames: Int[Array, "B C"]) -> Float[Array, "B C N E"]:
        """Return the tokens of log-mel features, of which `frames` are valid in each clip; for the whole encoder."""
        tokens = halved(halved(halved(frames)))
        x = self._subsample(features, frames)
        return self._project(self._run_layers(x, tokens))

    def _enter(self, waveforms: Float[Array, "B C T"], lengths: Int[Array, "B C"]) -> Float[Array, "B C N D"]:
        if waveforms.ndim != 3 or waveforms.shape[-1] < HOP or lengths.shape != waveforms.shape[:2]:
            raise ModelError(
                f"ParakeetEncoder: waveforms have shape {waveforms.shape} and lengths {lengths.shape}; "
                f"give [batch, clips, {HOP} samples or more] and [batch, clips]"
            )
        bins = self.config.mel_bins
        # Each device makes the features of its own clips: the partitioner would gather what it transforms.
        with scope("log_mel"):
            features = per_device(CLIPS, lambda *clips: log_mel(*clips, bins))(waveforms, lengths)
        return self._subsample(features, lengths // HOP)

    @scope("subsampling")
    def _subsample(self, features: Float[Array, "B C F M"], frames: Int[Array, "B C"]) -> Float[Array, "B C N D"]:
        x = self.subsampling(features.astype(self.subsampling.output.dtype), frames)
        return x * math.sqrt(self.config.width) if self.config.scale_input else x

    def _run_layers(self, x: Float[Array, "B C N D"], tokens: Int[Array, "B C"]) -> Float[Array, "B C N D"]:
        distances = encode_distances(x.shape[2], self.config.width, x.dtype)
        valid = jnp.arange(x.shape[2]) < tokens[..., None]
        x = constrain(x, *TOKENS, "embed")
        return self.layers.scan(lambda block, x, _: (block(x, distances, valid), None), x)[0]

    def _project(self, x: Float[Array, "B C N D"]) -> Float[Array, "B C N E"]:
        return x if self.config.projector_width is None else self.projector(x, given=TOKENS, wanted=TOKENS)
