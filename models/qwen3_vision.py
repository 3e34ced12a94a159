"""Qwen3-VL's vision tower (Qwen team 2025): packed patches of images and videos, and tokens of several depths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.dims import RESIDUAL, SEQUENCE, constrain, named
from hetjax.models.encoder import Encoder
from hetjax.models.errors import ModelError
from hetjax.models.parallel.sharded_linear import sharded_linear
from hetjax.models.parts.linear import Linear
from hetjax.models.parts.mlp import GeluMLP
from hetjax.models.parts.norms import LayerNorm
from hetjax.models.parts.position_grid import aligned_positions
from hetjax.models.parts.rope import RopeTable, axes_rope_table
from hetjax.models.parts.segments import numbered
from hetjax.models.parts.vision_block import vision_layer_cost, vision_layers
from hetjax.models.qwen3_vision_config import Qwen3VisionConfig
from hetjax.models.scopes import scope
from hetjax.models.stages import StageCut, check_inputs

# B batch · P patch rows of images · Q of videos · N of both · F numbers of a patch · T tokens · D width of the encoder
# E width of the language model · C depths

IMAGE_PORTS = ("patches", "places", "segments")
VIDEO_PORTS = tuple(f"video_{port}" for port in IMAGE_PORTS)


class PatchMerger(nnx.Module):
    """One token for each square of patches: their features side by side, a norm, and two layers with a GELU between.

    The norm is over each patch, or over the whole square (`of_squares`).
    """

    def __init__(self, config: Qwen3VisionConfig, *, of_squares: bool, rngs: nnx.Rngs):
        merged = config.rows_per_token * config.width
        self.merged, self.of_squares = merged, of_squares
        self.norm = LayerNorm(merged if of_squares else config.width, epsilon=config.norm_epsilon, rngs=rngs)
        self.mlp = GeluMLP(merged, merged, config.output_width, rngs=rngs)

    @scope("projector")
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B T E"]:
        """Return the tokens of patch rows."""
        if not self.of_squares:
            x = self.norm(x)
        x = constrain(x.reshape(x.shape[0], -1, self.merged), *RESIDUAL, "embed")
        if self.of_squares:
            x = self.norm(x)
        return constrain(self.mlp(x, wanted=SEQUENCE), *SEQUENCE, "embed")


class Qwen3VisionEncoder(Encoder):
    """Patches with interpolated learned positions, rotated layers, and a merger; mergers behind inner layers, too.

    Every image and every tubelet of a video is a sequence of its own for attention. The tokens of depth i,
    "deepstack_i", are made behind layer `config.deepstack[i]`, in the stage that has it. The encoder computes in the
    dtype of its weights.
    """

    first_stage, last_stage = ("patch", "positions"), ("merger",)

    def __init__(self, config: Qwen3VisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.cut = StageCut()
        self.patch = Linear({"patch": config.tubelet * config.patch_dim}, {"embed": config.width}, bias=True, rngs=rngs)
        positions = named(nnx.initializers.normal(config.width**-0.5), None, "width")
        self.positions = nnx.Param(positions(rngs.params(), (config.position_side**2, config.width), jnp.float32))
        self.layers = vision_layers(config, qkv_bias=True, gelu="tanh", rotated=True, rngs=rngs)
        self.merger = PatchMerger(config, of_squares=False, rngs=rngs)
        for port in config.deepstack_ports:
            setattr(self, port, PatchMerger(config, of_squares=True, rngs=rngs))

    @property
    def input_ports(self) -> tuple[str, ...]:
        """Every input that this stage takes, in order."""
        if self.cut.first:
            return IMAGE_PORTS + VIDEO_PORTS
        return ("hidden", *IMAGE_PORTS[1:], *VIDEO_PORTS[1:])

    @property
    def optional_ports(self) -> tuple[str, ...]:
        """Those of `input_ports` that a call may leave out: images or videos."""
        return tuple(port for port in self.input_ports if port != "hidden")

    @property
    def output_ports(self) -> tuple[str, ...]:
        """The outputs that this stage makes for other modules."""
        return (("tokens",) if self.cut.last else ()) + tuple(self._depths)

    @property
    def port_dims(self) -> dict[str, tuple[str | None, ...]]:
        """The dims of the ports that run along the tokens."""
        tokens = dict.fromkeys(("tokens", *self.config.deepstack_ports), (*SEQUENCE, "embed"))
        return {"hidden": (*RESIDUAL, "embed"), **tokens}

    @property
    def _depths(self) -> dict[str, int]:
        """The layer of this stage, counted from its own first, behind which each of its depths is made."""
        own = range(self.cut.start, self.cut.start + self.layers.count)
        pairs = zip(self.config.deepstack_ports, self.config.deepstack, strict=True)
        return {port: layer - self.cut.start for port, layer in pairs if layer in own}

    def multiplications(self) -> tuple[float, float, float]:
        """Return those of (patches, each layer, the merger), a patch row; those of depths are left out."""
        config = self.config
        merged = config.rows_per_token * config.width
        merger = config.width * (merged + config.output_width)
        return config.tubelet * config.patch_dim * config.width, vision_layer_cost(config), merger

    def stage(self, index: int, count: int, layers: Sequence[int] | None = None) -> Self:
        """Return pipeline stage `index` of `count`, with the mergers behind its own layers."""
        part = super().stage(index, count, layers)
        for port in self.config.deepstack_ports:
            if port not in part._depths:
                delattr(part, port)
        return part

    def __call__(
        self,
        patches: Float[Array, "B P F"] | None = None,
        places: Int[Array, "B P 4"] | None = None,
        segments: Int[Array, "B P"] | None = None,
        video_patches: Float[Array, "B Q video_F"] | None = None,
        video_places: Int[Array, "B Q 4"] | None = None,
        video_segments: Int[Array, "B Q"] | None = None,
        hidden: Float[Array, "B N D"] | None = None,
    ) -> dict[str, Float[Array, "B ..."]]:
        """Return {"tokens": [B, T, E]} from the whole encoder and its last stage, {"hidden": [B, N, D]} from others.

        Beside them, "deepstack_i" [B, T, E] for each depth that is made here. Inputs are those of
        `hetjax.models.radio.RadioEncoder`, without prefix tokens: patches of images and of tubelets, their places and
        an id an image or tubelet; every stage takes places and ids. Tokens made of padding are finite and mean nothing.
        Raises ModelError where inputs lack or shapes do not fit.
        """
        given = dict(
            patches=patches, places=places, segments=segments, video_patches=video_patches, video_places=video_places,
            video_segments=video_segments, hidden=hidden,
        )  # fmt: skip
        check_inputs(self, [port for port in self.input_ports if port not in self.optional_ports], given)
        kinds = [ports for ports in (IMAGE_PORTS, VIDEO_PORTS) if given[ports[2]] is not None]
        self._check(kinds, given)
        # Even ids for images and odd ones for videos, so that no two are equal.
        ids = [2 * given[ports[2]] + (ports is VIDEO_PORTS) for ports in kinds]
        ids, everywhere = numbered(_joined(ids)), _joined([given[ports[1]] for ports in kinds])
        x = constrain(self._embed(kinds, given, everywhere) if self.cut.first else hidden, *RESIDUAL, "embed")
        rope, depths = self._rope(everywhere, x.dtype), self._depths

        def layer(block, carry, place):
            x, kept = carry
            x = block(x, ids, rope=rope)
            return (
                x,
                tuple(jnp.where(place == at, x, old) for at, old in zip(depths.values(), kept, strict=True)),
            ), None

        kept = tuple(jnp.zeros_like(x) for _ in depths)
        (x, kept), _ = self.layers.scan(layer, (x, kept), jnp.arange(self.layers.count))
        made = {port: getattr(self, port)(each) for port, each in zip(depths, kept, strict=True)}
        return {**made, **({"tokens": self.merger(x)} if self.cut.last else {"hidden": x})}

    def _check(self, kinds: Sequence[Sequence[str]], given: Mapping[str, Array | None]) -> None:
        if not kinds:
            raise ModelError("Qwen3VisionEncoder: there are neither images nor videos; give segments or video_segments")
        for ports in kinds:
            size = self.config.patch_dim * (self.config.tubelet if ports is VIDEO_PORTS else 1)
            patches, places, segments = (given[port] for port in ports)
            wanted = (*segments.shape, size)
            fits = places is not None and places.shape == (*segments.shape, 4)
            if self.cut.first:
                fits = fits and patches is not None and patches.shape == wanted
            if not fits or segments.shape[-1] % self.config.rows_per_token:
                shapes = [None if each is None else each.shape for each in (patches, places, segments)]
                raise ModelError(
                    f"Qwen3VisionEncoder: {', '.join(ports)} have the shapes {shapes}; give [batch, N, {size}], "
                    "[batch, N, 4] and [batch, N], with a number N of patch rows that "
                    f"{self.config.rows_per_token} divides"
                )

    @scope("patch_embedding")
    def _embed(self, kinds, given: Mapping[str, Array], places: Int[Array, "B N 4"]) -> Float[Array, "B N D"]:
        # A patch's numbers lead with its frame: an image is the same frame several times.
        repeats = {IMAGE_PORTS: self.config.tubelet, VIDEO_PORTS: 1}
        patches = _joined([jnp.tile(given[ports[0]], (1, 1, repeats[ports])) for ports in kinds])
        patches = constrain(patches.astype(self.patch.dtype), *RESIDUAL, "patch")
        (x,) = sharded_linear(patches, self.patch, given=RESIDUAL, wanted=RESIDUAL)
        return x + aligned_positions(self.positions[...], places)

    def _rope(self, places: Int[Array, "B N 4"], dtype) -> RopeTable:
        """Rows turn the first half of a head's channel pairs, columns the other."""
        quarter = self.config.width // self.config.heads // 4
        axes = [0] * quarter + [1] * quarter
        exponents = [pair / quarter for pair in range(quarter)] * 2
        return axes_rope_table(places[..., :2], axes, exponents, self.config.rope_theta, dtype)


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis=1)
