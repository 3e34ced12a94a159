"""Prompts of text, images, a video and audio for tiny omni models, and what our three modules compute of them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax.models.arrays import arrays_by_path
from hetjax.models.components import build_component
from hetjax.models.huggingface.omni import omni_configs, omni_entries
from hetjax.models.parts.audio_clips import clip_token_positions, stack_clips, tokens_of_clip
from tests.harness.huggingface.omni_configs import TINY
from tests.harness.huggingface.whole_models import read_arrays, write_tensors
from tests.harness.models.arrays import with_arrays

# S positions of the prompt · C clips · V vocabulary

LEAST_STEP = 0.02
"""The least time step of Mamba, which transformers has in a prefill; large enough to be met."""
IMAGE, AUDIO = TINY["image_token_id"], TINY["audio_token_id"]
BUFFERS = ("gate.e_score_correction_bias", "running_mean", "running_var", "num_batches_tracked")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What a prompt has, in this order, with words before, between and behind."""

    grids: tuple[tuple[int, int], ...] = ()
    """(height, width) of each image in patches."""
    tubelets: int = 0
    """Length of the video in pairs of frames; 0 for none."""
    video_grid: tuple[int, int] = (4, 6)
    """(height, width) of the video in patches."""
    clips: tuple[int, ...] = ()
    """Samples of each clip of audio."""
    words: int = 6
    """Tokens behind all others."""
    rate: float = 0.0
    """Share of the video's tokens to drop."""


WHOLE = Case(grids=((4, 6),), tubelets=3, video_grid=(2, 4), clips=(160 * 37 + 5,))


def hf_config() -> dict[str, Any]:
    """config.json of the tiny model."""
    hf = copy.deepcopy(TINY)
    hf["text_config"]["time_step_min"] = LEAST_STEP
    return hf


def make_inputs(case: Case, dtype: type = np.float32) -> dict[str, Any]:
    """{"images", "video" [T, H, W, 3], "clips", "tokens", "labels" [S]} of transformers' kind, for one sample."""
    random = np.random.default_rng(4)
    side = TINY["vision_config"]["patch_size"]
    # What goes through float32 on the host, as packing does, must lose nothing.
    noise = lambda *shape: random.normal(size=shape).astype(np.float32).astype(dtype)  # noqa: E731
    images = [noise(height * side, width * side, 3) for height, width in case.grids]
    height, width = case.video_grid
    video = noise(2 * case.tubelets, height * side, width * side, 3)
    # A tubelet that is much like the one before gives pruning something to choose from.
    video[4:6] = (video[2:4] + 0.1 * video[4:6]).astype(np.float32)
    clips = [noise(samples) for samples in case.clips]
    counts = [(IMAGE, height * width // 4) for height, width in case.grids]
    counts += [(IMAGE, case.tubelets * height * width // 4)] * bool(case.tubelets)
    counts += [(AUDIO, tokens_of_clip(samples)) for samples in case.clips]
    words = lambda count: random.integers(30, 128, count)  # noqa: E731
    tokens = np.concatenate([words(3), *(part for id, n in counts for part in ([id] * n, words(2))), words(case.words)])
    is_media = np.isin(tokens, (IMAGE, AUDIO))
    # Where a token is dropped, the one before it would have to predict what follows.
    hidden = is_media | np.concatenate([[False], is_media[:-1]]) | (random.random(len(tokens)) < 0.2)
    return {
        "images": images, "video": video, "clips": clips, "tokens": tokens, "labels": np.where(hidden, -100, tokens)
    }  # fmt: skip


def our_modules(hf: dict[str, Any], weights: dict[str, np.ndarray], rate: float = 0.0) -> dict[str, nnx.Module]:
    """Our modules with a checkpoint's tensors, in their dtype."""
    configs = omni_configs(hf)
    mamba = dataclasses.replace(configs["llm"].mamba, min_dt=LEAST_STEP)
    configs["llm"] = dataclasses.replace(configs["llm"], mamba=mamba)
    configs["vision"] = dataclasses.replace(configs["vision"], video_pruning_rate=rate)
    modules = {}
    for name, entries in omni_entries(configs).items():
        shell = nnx.eval_shape(lambda name=name: build_component(configs[name], nnx.Rngs(0)))
        shapes = arrays_by_path(shell)
        counts = {path: np.zeros(each.shape, each.dtype) for path, each in shapes.items() if path.endswith("/counts")}
        arrays = {**read_arrays(entries, weights, shapes), **counts}
        modules[name] = with_arrays(shell, {path: jnp.asarray(array) for path, array in arrays.items()})
    return modules


def our_batch(modules: dict[str, nnx.Module], given: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """The inputs of each module, for one sample; none for an encoder that has nothing to do."""
    vision, tokens, labels = modules["vision"].config, given["tokens"], given["labels"]
    dtype = given["video"].dtype
    batch, rows, of_vision = {}, 0, []
    tubelets = given["video"].reshape(-1, 2, *given["video"].shape[1:])[:, 0]
    packs = (
        ("", vision.image_rows.pack_images, given["images"], given["images"]),
        ("video_", vision.video_rows.pack_videos, [given["video"]], tubelets),
    )
    for prefix, pack, media, sequences in packs:
        if len(sequences):
            patches = sum(each.shape[0] * each.shape[1] // vision.patch_size**2 for each in sequences)
            # Some padding behind them.
            capacity = len(sequences) * vision.prefix_rows + patches + 8
            packed = pack(media, capacity)
            inputs = {port: getattr(packed, port)[None] for port in ("patches", "places", "segments")}
            inputs["patches"] = inputs["patches"].astype(dtype)
            batch.setdefault("vision", {}).update({f"{prefix}{port}": each for port, each in inputs.items()})
            of_vision += [rows + each for each in packed.tokens]
            rows += capacity // vision.rows_per_token
    llm = {"tokens": tokens[None].astype(np.int32)}
    following = np.append(labels[1:], -100)
    llm["labels"] = np.where(following < 0, 0, following)[None].astype(np.int32)
    llm["loss_weights"] = ((following >= 0) / (following >= 0).sum())[None].astype(dtype)
    if of_vision:
        llm["image_positions"] = _positions(np.concatenate(of_vision), rows, tokens, IMAGE)
    if given["clips"]:
        waveforms, lengths = stack_clips(given["clips"])
        batch["audio"] = {"waveforms": waveforms[None].astype(dtype), "lengths": lengths[None]}
        own, _ = clip_token_positions(lengths, waveforms.shape[1])
        count = len(lengths) * tokens_of_clip(waveforms.shape[1])
        llm["audio_positions"] = _positions(own, count, tokens, AUDIO)
    return {**batch, "llm": llm}


def _positions(own: np.ndarray, count: int, tokens: np.ndarray, kind: int) -> np.ndarray:
    """The position of each of `count` tokens of an encoder, of which `own` are the real ones in order."""
    positions = np.full((1, count), len(tokens), np.int32)
    positions[0, own] = np.flatnonzero(tokens == kind)[: len(own)]
    return positions


def encode(modules: dict[str, nnx.Module], batch: dict[str, dict[str, Any]]) -> dict[str, jax.Array]:
    """What the encoders hand to the language model."""
    fed = {}
    if "vision" in batch:
        seen = modules["vision"](**batch["vision"])
        fed["image_tokens"] = seen["tokens"]
        if "kept" in seen:
            fed["image_kept"] = seen["kept"]
    if "audio" in batch:
        fed["audio_tokens"] = modules["audio"](**batch["audio"])["tokens"]
    return fed


def loss_and_gradients(modules, batch) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The mean loss over all labels, and gradients of all weights under the checkpoint's names."""
    split = {name: nnx.split(module, nnx.Param, ...) for name, module in modules.items()}

    @jax.jit
    @jax.value_and_grad
    def run(params, rest):
        # Variables made in this trace, for a call may set them.
        rest = jax.tree.map(lambda leaf: leaf, rest)
        made = {name: nnx.merge(split[name][0], params[name], rest[name], copy=True) for name in params}
        return made["llm"](**batch["llm"], **encode(made, batch))["loss"]

    rest = {name: each[2] for name, each in split.items()}
    loss, gradients = run({name: each[1] for name, each in split.items()}, rest)
    by_path = {
        name: jax.device_get(arrays_by_path(nnx.merge(split[name][0], gradients[name], rest[name]))) for name in rest
    }
    entries = omni_entries({name: module.config for name, module in modules.items()})
    named = {key: each for name in by_path for key, each in write_tensors(entries[name], by_path[name]).items()}
    return np.asarray(loss), {name: gradient for name, gradient in named.items() if not name.endswith(BUFFERS)}


def logits(modules, batch, rows: np.ndarray) -> np.ndarray:
    """Return logits [rows, V] of positions `rows`, by way of a prefill of a sample for each."""
    fed = {port: each for port, each in batch["llm"].items() if port not in ("labels", "loss_weights")}

    @jax.jit
    def run(modules, rows):
        given = {**fed, **encode(modules, batch)}
        given = {port: jnp.repeat(jnp.asarray(each), len(rows), axis=0) for port, each in given.items()}
        llm, shape = modules["llm"], given["tokens"].shape
        cache = llm.init_cache(*shape, llm.embedding[...].dtype)
        positions = jnp.broadcast_to(jnp.arange(shape[1]), shape)
        return llm.decode(cache, positions=positions, last=rows, **given)[0]["logits"]

    return np.asarray(run(modules, jnp.asarray(rows)))
