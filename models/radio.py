"""C-RADIO: a vision transformer for packed images of any size, and for videos (Heinrich et al. 2025).

Patches come in *merge order*: the patches of each square of neighbours stand next to each other, row by row, so that
pixel shuffle is a reshape. What packs images this way is `hetjax.models.patch_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hetjax.models.dims import RESIDUAL, SEQUENCE, constrain, named
from hetjax.models.encoder import Encoder
from hetjax.models.errors import ModelError
from hetjax.models.parallel.sharded_linear import sharded_linear
from hetjax.models.parts.attention import Windows
from hetjax.models.parts.linear import Linear
from hetjax.models.parts.position_grid import cropped_positions
from hetjax.models.parts.projector import Projector
from hetjax.models.parts.segments import numbered
from hetjax.models.parts.video_pruning import capacity_for_kept, prune
from hetjax.models.parts.vision_block import vision_layer_cost, vision_layers
from hetjax.models.radio_config import RadioConfig
from hetjax.models.scopes import scope
from hetjax.models.stages import StageCut, check_inputs

# B batch · P patches of images · Q patches of videos · N = P + Q, prefix tokens and padding among them
# D width of the encoder · F numbers of a patch
# E width of the language model · T tokens = N / merge² · K tokens left after pruning

IMAGE_PORTS = ("patches", "places", "segments")
VIDEO_PORTS = ("video_patches", "video_places", "video_segments")


class RadioEncoder(Encoder):
    """Patch embedders, cropped positions, prefix tokens, `layers` blocks without a norm at the end, and a projector.

    Every image and every tubelet, the frames that one patch of a video spans, is a sequence of its own for attention.
    The encoder computes in the dtype of its weights.
    """

    first_stage, last_stage = ("patch", "video_patch", "positions", "prefix"), ("projector",)

    def __init__(self, config: RadioConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.cut = StageCut()
        width = config.width
        self.patch = Linear({"patch": config.patch_dim}, {"embed": width}, rngs=rngs)
        of_videos = {"patch": config.video_patch_dim}
        self.video_patch = None if config.tubelet is None else Linear(of_videos, {"embed": width}, rngs=rngs)
        vectors = named(nnx.initializers.normal(0.02), None, "width")
        self.positions = nnx.Param(vectors(rngs.params(), (config.position_side**2, width), jnp.float32))
        self.prefix = nnx.Param(vectors(rngs.params(), (config.prefix_tokens, width), jnp.float32))
        self.layers = vision_layers(config, qkv_bias=True, rngs=rngs)
        self.projector = None if config.projector_width is None else _projector(config, rngs)

    @property
    def input_ports(self) -> tuple[str, ...]:
        """Every input that this stage takes, in order."""
        videos = VIDEO_PORTS if self.config.tubelet is not None else ()
        if self.cut.first:
            return IMAGE_PORTS + videos
        # Pruning has to know patches from prefix tokens.
        prunes = self.cut.last and self.config.video_pruning_rate > 0
        return ("hidden", "segments", *videos[1 if prunes else 2 :])

    @property
    def optional_ports(self) -> tuple[str, ...]:
        """Those of `input_ports` that a call may leave out: images or videos, where it takes both."""
        return () if self.config.tubelet is None else tuple(port for port in self.input_ports if port != "hidden")

    @property
    def port_dims(self) -> dict[str, tuple[str | None, ...]]:
        """The dims of the ports that run along the tokens."""
        dims = {"hidden": (*RESIDUAL, "embed"), "tokens": (*SEQUENCE, "embed")}
        return {**dims, "kept": SEQUENCE} if self.config.video_pruning_rate else dims

    def multiplications(self) -> tuple[float, float, float]:
        """Return those of (patches, each layer, the projector), a token of a layer; videos count as images."""
        config = self.config
        projector = 0
        if config.projector_width is not None:
            projector = config.projector_width * (config.width + config.output_width / config.rows_per_token)
        return config.patch_dim * config.width, vision_layer_cost(config), projector

    def __call__(
        self,
        patches: Float[Array, "B P F"] | None = None,
        places: Int[Array, "B P 4"] | None = None,
        segments: Int[Array, "B P"] | None = None,
        video_patches: Float[Array, "B Q video_F"] | None = None,
        video_places: Int[Array, "B Q 4"] | None = None,
        video_segments: Int[Array, "B Q"] | None = None,
        hidden: Float[Array, "B N D"] | None = None,
    ) -> dict[str, Array]:
        """Return {"tokens": [B, T, E]} from the whole encoder and its last stage, {"hidden": [B, N, D]} from others.

        Beside patches there are prefix tokens and padding, which `places` distinguishes: (row, column, height, width)
        of a patch in the patch grid of its image; -1 - i in place of the row for prefix token i; -1000 for padding.
        `segments` holds an id of each, the same for all of one image, which are neighbours, and another for padding;
        every stage takes it.
        Videos have the same three inputs, with an image's patches for every tubelet; they stand behind those of the
        images, and the ids of the two have nothing to do with each other. Tokens made of prefix tokens or padding are
        finite and mean nothing.

        With `video_pruning_rate` it returns "kept" [B, K], too: all tokens of images and those of videos that
        `hetjax.models.parts.video_pruning.prune` keeps are left, and "kept" says which of the T each is, T or more for
        padding. The ids of a video's tubelets follow each other. Without a projector, "tokens" are the features of all
        patches, prefix tokens and padding, [B, N, D].

        Raises ModelError where inputs lack or shapes do not fit.
        """
        given = dict(
            patches=patches, places=places, segments=segments, video_patches=video_patches, video_places=video_places,
            video_segments=video_segments, hidden=hidden,
        )  # fmt: skip
        check_inputs(self, [port for port in self.input_ports if port not in self.optional_ports], given)
        # Padding lies between images, too: with one id, it would keep attention from skipping what is between.
        ids = numbered(self._segments(segments, video_segments))
        x = self._embed_all(given) if self.cut.first else hidden
        windows = self._windows(segments, video_segments)
        x, _ = self.layers.scan(lambda block, x, _: (block(x, ids, windows), None), constrain(x, *RESIDUAL, "embed"))
        if not self.cut.last:
            return {"hidden": x}
        if self.projector is None:
            return {"tokens": constrain(x, *SEQUENCE, "embed")}
        # One token for each square of patches, its patches' features side by side.
        merged = x.reshape(x.shape[0], -1, self.config.rows_per_token * x.shape[-1])
        tokens = constrain(self.projector(constrain(merged, *RESIDUAL, "embed")), *SEQUENCE, "embed")
        if not self.config.video_pruning_rate or video_segments is None:
            return {"tokens": tokens, **self._all_kept(tokens)}
        return self._prune(tokens, video_places, video_segments)

    def _all_kept(self, tokens: Float[Array, "B T E"]) -> dict[str, Int[Array, "B T"]]:
        if not self.config.video_pruning_rate:
            return {}
        return {"kept": jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape[:2])}

    @scope("video_pruning")
    def _prune(self, tokens: Float[Array, "B T E"], places: Int[Array, "B Q 4"], segments: Int[Array, "B Q"]):
        if places is None:
            raise ModelError("RadioEncoder: pruning needs video_places beside video_segments; give both or neither")
        rate, size = self.config.video_pruning_rate, self.config.rows_per_token
        count = segments.shape[1] // size
        images, videos = tokens[:, :-count], constrain(tokens[:, -count:], "batch", None, None)
        # The last patch of a square: where prefix tokens do not fill one, padding comes first.
        segments, is_patch = segments[:, size - 1 :: size], places[:, size - 1 :: size, 0] >= 0
        if self.config.tubelet_rows is not None:
            # Padding at the end of a tubelet counts as its own, so that the next one follows.
            tubelets = segments.reshape(segments.shape[0], -1, self.config.tubelet_rows // size)
            first = self.config.prefix_rows // size
            own = jnp.broadcast_to(tubelets[..., first : first + 1], tubelets.shape)
            segments = own.reshape(segments.shape)
        videos, kept = prune(videos, segments, is_patch, rate, capacity_for_kept(count, rate))
        kept = jnp.concatenate([self._all_kept(images)["kept"], images.shape[1] + kept], axis=1)
        return {"tokens": constrain(jnp.concatenate([images, videos], axis=1), *SEQUENCE, "embed"), "kept": kept}

    def _segments(self, segments, video_segments) -> Int[Array, "B N"]:
        if segments is None and video_segments is None:
            raise ModelError("RadioEncoder: there are neither segments nor video_segments; give images, videos or both")
        if video_segments is None:
            return segments
        # Even ids for images and odd ones for videos, so that no two are equal.
        return video_segments if segments is None else jnp.concatenate([2 * segments, 2 * video_segments + 1], axis=1)

    def _windows(self, segments, video_segments) -> Windows | None:
        size = self.config.tubelet_rows
        if size is None or video_segments is None:
            return None
        if video_segments.shape[1] % size:
            raise ModelError(
                f"RadioEncoder: {video_segments.shape[1]} patch rows of videos, but tubelet_rows = {size}; give a "
                "multiple"
            )
        images = () if segments is None else ((1, segments.shape[1]),)
        return (*images, (video_segments.shape[1] // size, size))

    @scope("patch_embedding")
    def _embed_all(self, given: Mapping[str, Array | None]) -> Float[Array, "B N D"]:
        embedded = []
        for ports, linear, size in (
            (IMAGE_PORTS, self.patch, self.config.patch_dim),
            (VIDEO_PORTS, self.video_patch, self.config.video_patch_dim),
        ):
            patches, places, segments = (given[port] for port in ports)
            if patches is places is segments is None:
                continue
            if any(array is None for array in (patches, places, segments)):
                raise ModelError(f"RadioEncoder: give all of {', '.join(ports)}, or none of them")
            shape = segments.shape
            if patches.shape != (*shape, size) or places.shape != (*shape, 4) or shape[-1] % self.config.rows_per_token:
                raise ModelError(
                    f"RadioEncoder: {', '.join(ports)} have the shapes {patches.shape}, {places.shape} and {shape}; "
                    f"give [batch, N, {size}], [batch, N, 4] and [batch, N], with a number N of patch rows that "
                    f"{self.config.rows_per_token} divides"
                )
            embedded.append(self._embed(patches, places, linear))
        return embedded[0] if len(embedded) == 1 else jnp.concatenate(embedded, axis=1)

    def _embed(self, patches: Float[Array, "B P F"], places: Int[Array, "B P 4"], linear: Linear):
        patches = constrain(patches.astype(linear.dtype), *RESIDUAL, "patch")
        (x,) = sharded_linear(patches, linear, given=RESIDUAL, wanted=RESIDUAL)
        row = places[..., :1]
        # Numbers past the end of the prefix tokens, those of patches and padding, get zeros.
        token = jnp.where(row < 0, -1 - row, self.config.prefix_tokens)[..., 0]
        prefix = self.prefix[...].at[token].get(mode="fill", fill_value=0)
        x = jnp.where(row >= 0, x + cropped_positions(self.positions[...], places), prefix)
        return constrain(x, *RESIDUAL, "embed")


def _projector(config: RadioConfig, rngs: nnx.Rngs) -> Projector:
    merged = config.rows_per_token * config.width
    epsilon = config.projector_norm_epsilon
    return Projector(merged, config.projector_width, config.output_width, norm_epsilon=epsilon, rngs=rngs)
