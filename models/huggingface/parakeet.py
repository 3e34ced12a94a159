"""Parakeet audio encoders: names of their tensors, and their config, in and out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from hetjax.models.errors import ModelError
from hetjax.models.huggingface.entry import Entry, Slot, kernel, same
from hetjax.models.huggingface.known_keys import check_known, key_names
from hetjax.models.json_values import Json, JsonObject
from hetjax.models.parakeet_config import ParakeetConfig
from hetjax.models.parts.audio_clips import SAMPLE_RATE
from hetjax.models.parts.mel import WINDOW, mel_filters

PREFIX = "sound_encoder.encoder."
PROJECTOR = "sound_projection."
FEATURIZER = r"feature_extractor\.featurizer\.(fb|window)$"
"""The front end's constants, which some checkpoints hold and no module of ours does."""

READ = key_names(
    """
    hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size conv_kernel_size
    num_mel_bins subsampling_conv_channels scale_input projection_hidden_size feat_in
    activation_dropout attention_dropout dropout dropout_positions layerdrop
    """
)
"""Keys that are read, `feat_in`, and rates of what is dropped in training, which is nothing here."""

_CONVOLUTION_TAPS, _CONVOLUTION_STRIDE, _FACTOR = 3, 2, 8


def parakeet_entries(config: ParakeetConfig, *, prefix: str = PREFIX, projector: str = PROJECTOR) -> list[Entry]:
    """Return all tensors of an encoder and, where the config has one, of its projector.

    `prefix` and `projector` are how their names begin; a bare encoder of transformers has prefix "".
    """
    entries = [*_subsampling(config, f"{prefix}subsampling.")]
    for layer in range(config.layers):
        entries += _layer(config, f"{prefix}layers.{layer}.", layer)
    if config.projector_width is not None:
        width, hidden, output = config.width, config.projector_width, config.output_width
        entries += [
            same(f"{projector}norm.weight", "projector/norm/scale"),
            kernel(f"{projector}linear1.weight", "projector/mlp/up/kernel", ins=(width,), outs=(hidden,)),
            kernel(f"{projector}linear2.weight", "projector/mlp/down/kernel", ins=(hidden,), outs=(output,)),
        ]
    return entries


def _subsampling(config: ParakeetConfig, name: str) -> Iterator[Entry]:
    channels, bins = config.subsampling_channels, config.mel_bins // _FACTOR
    yield _taps(f"{name}layers.0.weight", "subsampling/first/kernel", (_CONVOLUTION_TAPS,) * 2)
    yield same(f"{name}layers.0.bias", "subsampling/first/bias")
    for depthwise, part in ((2, "second"), (5, "third")):
        pointwise, ours = f"{name}layers.{depthwise + 1}", f"subsampling/{part}"
        yield _taps(f"{name}layers.{depthwise}.weight", f"{ours}/depthwise", (_CONVOLUTION_TAPS,) * 2)
        yield same(f"{name}layers.{depthwise}.bias", f"{ours}/bias")
        yield Entry(
            names=(f"{pointwise}.weight",),
            slots=(Slot(path=f"{ours}/pointwise/kernel"),),
            read=lambda given: (given[:, :, 0, 0].T,),
            write=lambda ours: (np.ascontiguousarray(ours.T)[:, :, None, None],),
        )
        yield same(f"{pointwise}.bias", f"{ours}/pointwise/bias")
    yield kernel(f"{name}linear.weight", "subsampling/output/kernel", ins=(channels, bins), outs=(config.width,))
    yield same(f"{name}linear.bias", "subsampling/output/bias")


def _taps(name: str, path: str, taps: tuple[int, ...], *index: int) -> Entry:
    """Taps of each channel by itself: theirs [channels, 1, *taps], ours [all taps, channels]."""
    return Entry(
        names=(name,),
        slots=(Slot(path=path, index=index),),
        read=lambda given: (given.reshape(given.shape[0], -1).T,),
        write=lambda ours: (np.ascontiguousarray(ours.T).reshape(-1, 1, *taps),),
    )


def _layer(config: ParakeetConfig, name: str, layer: int) -> Iterator[Entry]:
    width, heads, ours = config.width, (config.heads, config.head_dim), "layers/block"
    for theirs, part in (("feed_forward1", "first"), ("feed_forward2", "second")):
        for linear, path, ins, outs in (
            ("linear1", "up", width, config.mlp_width),
            ("linear2", "down", config.mlp_width, width),
        ):
            yield kernel(
                f"{name}{theirs}.{linear}.weight", f"{ours}/{part}/{path}/kernel", layer, ins=(ins,), outs=(outs,)
            )
    for theirs, part in (
        ("q_proj", "query"),
        ("k_proj", "key"),
        ("v_proj", "value"),
        ("relative_k_proj", "distance"),
    ):
        path = f"{ours}/attention/{part}/kernel"
        yield kernel(f"{name}self_attn.{theirs}.weight", path, layer, ins=(width,), outs=heads)
    yield kernel(f"{name}self_attn.o_proj.weight", f"{ours}/attention/output/kernel", layer, ins=heads, outs=(width,))
    yield same(f"{name}self_attn.bias_u", f"{ours}/attention/content_bias", layer)
    yield same(f"{name}self_attn.bias_v", f"{ours}/attention/distance_bias", layer)
    yield from _convolution(config, f"{name}conv.", f"{ours}/convolution", layer)
    for theirs, part in (
        ("feed_forward1", "first"),
        ("self_att", "attention"),
        ("conv", "convolution"),
        ("feed_forward2", "second"),
        ("out", "output"),
    ):
        yield same(f"{name}norm_{theirs}.weight", f"{ours}/{part}_norm/scale", layer)
        yield same(f"{name}norm_{theirs}.bias", f"{ours}/{part}_norm/bias", layer)


def _convolution(config: ParakeetConfig, name: str, ours: str, layer: int) -> Iterator[Entry]:
    # The map ahead of the gated unit, which we hold in two: first the values, then the gates.
    yield Entry(
        names=(f"{name}pointwise_conv1.weight",),
        slots=tuple(Slot(path=f"{ours}/{part}/kernel", index=(layer,)) for part in ("value", "gate")),
        read=lambda given: tuple(half[:, :, 0].T for half in np.split(given, 2)),
        write=lambda value, gate: (np.concatenate([value.T, gate.T])[:, :, None],),
    )
    yield _taps(f"{name}depthwise_conv.weight", f"{ours}/depthwise", (config.conv_taps,), layer)
    yield Entry(
        names=(f"{name}pointwise_conv2.weight",),
        slots=(Slot(path=f"{ours}/output/kernel", index=(layer,)),),
        read=lambda given: (given[:, :, 0].T,),
        write=lambda ours: (np.ascontiguousarray(ours.T)[:, :, None],),
    )
    for theirs, part in (
        ("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "variance"),
    ):  # fmt: skip
        yield same(f"{name}norm.{theirs}", f"{ours}/norm/{part}", layer)
    # A count: theirs has 64 bits, ours what the platform's integers have.
    yield Entry(
        names=(f"{name}norm.num_batches_tracked",),
        slots=(Slot(path=f"{ours}/norm/batches", index=(layer,)),),
        read=lambda given: (given,),
        write=lambda ours: (np.asarray(ours, np.int64),),
    )


def parakeet_buffers(config: ParakeetConfig, *, prefix: str = PREFIX) -> dict[str, np.ndarray]:
    """Return the front end's constants as checkpoints hold them: filters [1, bins, 257] and window [400], float32."""
    name = f"{prefix}feature_extractor.featurizer."
    return {
        f"{name}fb": mel_filters(config.mel_bins).astype(np.float32)[None],
        f"{name}window": np.hanning(WINDOW).astype(np.float32),
    }


def parakeet_config(hf: Mapping[str, Json], *, output_width: int | None = None) -> ParakeetConfig:
    """Return the config of an encoder from a `sound_config` or `audio_config`, or that of a bare encoder.

    `output_width` is the width of the language model, for those with a projector. `feat_in` is ignored: released
    configs hold 80 there, beside weights for 128 bins. Raises ModelError for what this encoder does not do.
    """
    expected = {
        "hidden_act": "silu",
        "attention_bias": False,
        "convolution_bias": False,
        "projection_bias": False,
        "subsampling_factor": _FACTOR,
        "subsampling_conv_kernel_size": _CONVOLUTION_TAPS,
        "subsampling_conv_stride": _CONVOLUTION_STRIDE,
        "sampling_rate": SAMPLE_RATE,
    }
    check_known(hf, READ, expected)
    if hf.get("num_key_value_heads", hf.get("num_attention_heads")) != hf.get("num_attention_heads"):
        raise ModelError(f"config of the audio encoder: num_key_value_heads = {hf['num_key_value_heads']} is not heads")
    for name, value in expected.items():
        if hf.get(name, value) != value:
            raise ModelError(f"config of the audio encoder: {name} = {hf[name]!r}; only {value!r} is supported")
    return ParakeetConfig(
        type="parakeet",
        width=hf.get("hidden_size", 1024),
        layers=hf.get("num_hidden_layers", 24),
        heads=hf.get("num_attention_heads", 8),
        mlp_width=hf.get("intermediate_size", 4096),
        conv_taps=hf.get("conv_kernel_size", 9),
        mel_bins=hf.get("num_mel_bins", 128),
        subsampling_channels=hf.get("subsampling_conv_channels", 256),
        scale_input=hf.get("scale_input", False),
        projector_width=hf.get("projection_hidden_size") if output_width is not None else None,
        output_width=output_width if "projection_hidden_size" in hf else None,
    )


def parakeet_hf_config(config: ParakeetConfig) -> JsonObject:
    """Return the reverse of `parakeet_config`, as the `audio_config` or `sound_config` of a whole model has it."""
    projector = (
        {}
        if config.projector_width is None
        else {
            "projection_hidden_size": config.projector_width,
            "projection_bias": False,
        }
    )
    return {
        "model_type": "parakeet_encoder",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": "silu",
        "attention_bias": False,
        "convolution_bias": False,
        "conv_kernel_size": config.conv_taps,
        "num_mel_bins": config.mel_bins,
        "subsampling_factor": _FACTOR,
        "subsampling_conv_channels": config.subsampling_channels,
        "subsampling_conv_kernel_size": _CONVOLUTION_TAPS,
        "subsampling_conv_stride": _CONVOLUTION_STRIDE,
        "scale_input": config.scale_input,
        "sampling_rate": SAMPLE_RATE,
        **projector,
    }
