"""A tiny model of images, videos, audio and text, and random batches for it, in the forms that its ports take."""

import dataclasses

import numpy as np
from flax import nnx

from hetjax import Edge, ModuleGraph
from hetjax.models import NemotronHConfig, ParakeetConfig, RadioConfig
from hetjax.models.components import build_component
from hetjax.models.parts.audio_clips import clip_token_positions, stack_clips, tokens_of_clip
from hetjax.models.presets import find_preset

SAMPLES, ROWS, CLIPS, CLIP_SAMPLES = 8, 64, 2, 9600


def components(pruning_rate: float = 0.0, **llm) -> dict[str, RadioConfig | ParakeetConfig | NemotronHConfig]:
    """The tiny preset with other settings here and there."""
    made = dict(find_preset("nemotron_3_nano_omni_tiny"))
    made["vision"] = dataclasses.replace(made["vision"], video_pruning_rate=pruning_rate)
    made["llm"] = dataclasses.replace(made["llm"], **llm)
    return made


def make_graph(pruning_rate: float = 0.0, **llm) -> ModuleGraph:
    """Vision and audio into language, with weights: logarithms and exponentials among the initial ones would be rounded
    in one way by a jit and in another without."""
    modules = {
        name: build_component(config, nnx.Rngs(place))
        for place, (name, config) in enumerate(components(pruning_rate, **llm).items())
    }
    edges = [Edge("vision.tokens", "llm.image_tokens"), Edge("audio.tokens", "llm.audio_tokens")]
    if pruning_rate:
        edges.append(Edge("vision.kept", "llm.image_kept", gradient=False))
    return ModuleGraph(modules, edges)


def make_batch(seed: int = 0, dtype: type = np.float32) -> dict[str, dict[str, np.ndarray]]:
    """Samples with one or two images of unlike sizes, a video of two tubelets, and up to two clips."""
    random = np.random.default_rng(seed)
    config = components()["vision"]
    images, videos, rows = [], [], []
    for sample in range(SAMPLES):
        sizes = [(8, 16), (16, 8)][: 1 + sample % 2]
        images.append([random.normal(size=(*size, 3)).astype(np.float32) for size in sizes])
        videos.append([random.normal(size=(4, 8, 8, 3)).astype(np.float32)])
        lengths = [CLIP_SAMPLES, 8000][: sample % 3]
        rows.append([random.normal(size=length).astype(np.float32) for length in lengths])
    vision, image_positions, audio, audio_positions = {}, [], [], []
    packs = [
        (config.image_rows.pack_images(shown, 48), config.video_rows.pack_videos(films, 32))
        for shown, films in zip(images, videos, strict=True)
    ]
    for place, prefix in enumerate(("", "video_")):
        for port in ("patches", "places", "segments"):
            vision[f"{prefix}{port}"] = np.stack([getattr(pack[place], port) for pack in packs])
    vision |= {port: array.astype(dtype) for port, array in vision.items() if port.endswith("patches")}
    for sample, pack in enumerate(packs):
        positions = np.full(48 // 4 + 32 // 4, ROWS, np.int32)
        tokens = np.concatenate([*pack[0].tokens, *(12 + each for each in pack[1].tokens)])
        positions[tokens] = 3 + np.arange(len(tokens))
        image_positions.append(positions)
        waveforms, lengths = stack_clips(rows[sample], CLIPS, CLIP_SAMPLES)
        audio.append((waveforms.astype(dtype), lengths))
        real, _ = clip_token_positions(lengths, CLIP_SAMPLES)
        places = np.full(CLIPS * tokens_of_clip(CLIP_SAMPLES), ROWS, np.int32)
        places[real] = 30 + np.arange(len(real))
        audio_positions.append(places)
    weights = (random.random((SAMPLES, ROWS)) < 0.6).astype(dtype)
    ids = random.integers(32, 288, (SAMPLES, ROWS + 1), dtype=np.int32)
    return {
        "vision": vision,
        "audio": {"waveforms": np.stack([w for w, _ in audio]), "lengths": np.stack([n for _, n in audio])},
        "llm": {
            "tokens": ids[:, :-1],
            "labels": ids[:, 1:],
            "loss_weights": weights,
            "image_positions": np.stack(image_positions),
            "audio_positions": np.stack(audio_positions),
        },
    }
