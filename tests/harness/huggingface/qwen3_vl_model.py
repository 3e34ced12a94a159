"""A tiny Qwen3-VL as config.json describes it, and a batch of pictures and a film for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from hetjax.models.qwen3_vision_config import Qwen3VisionConfig
from tests.harness.huggingface.vision_language import shifted
from tests.harness.models.radio_cases import image_inputs, video_inputs

IMAGE, VIDEO = 18, 19
SIDE, MERGE, TUBELET = 4, 2, 2
TEXT = {
    "vocab_size": 288, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 36, "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2], "mrope_interleaved": True,
    },
}  # fmt: skip
TOWER = {
    "hidden_size": 16, "intermediate_size": 20, "depth": 4, "num_heads": 2, "patch_size": SIDE,
    "spatial_merge_size": MERGE, "temporal_patch_size": TUBELET, "out_hidden_size": 24, "num_position_embeddings": 25,
    "deepstack_visual_indexes": [0, 2],
}  # fmt: skip
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": 21, "vision_end_token_id": 22}
DENSE: dict[str, Any] = {"model_type": "qwen3_vl", "text_config": TEXT, "vision_config": TOWER, **IDS}
EXPERTS: dict[str, Any] = {
    **DENSE, "model_type": "qwen3_vl_moe",
    "text_config": {**TEXT, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
}  # fmt: skip
CONFIGS = {"qwen3_vl": DENSE, "qwen3_vl_moe": EXPERTS}
GRIDS = ((4, 6), (2, 2))
"""Of a picture in each of the two samples."""
FILM, TUBELETS = (2, 4), 2
"""The grid of a film in the second sample."""


def given() -> dict[str, np.ndarray]:
    """Pictures, the film's frames, tokens and labels [2, 25] of transformers' kind."""
    random = np.random.default_rng(4)
    tokens = random.integers(32, 288, (2, 25))
    tokens[0, 3:9] = IMAGE
    tokens[1, 2:3] = IMAGE
    tokens[1, 6:8], tokens[1, 11:13] = VIDEO, VIDEO
    labels = np.where((tokens < 32) | (random.random(tokens.shape) < 0.2), -100, tokens)
    draw = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    pictures = {f"image.{i}": draw(h * SIDE, w * SIDE, 3) for i, (h, w) in enumerate(GRIDS)}
    return {
        **pictures,
        "film": draw(2 * TUBELETS, FILM[0] * SIDE, FILM[1] * SIDE, 3),
        "tokens": tokens,
        "labels": labels,
    }


def coordinates(tokens: np.ndarray) -> np.ndarray:
    """Time, row and column of every position [2, S, 3], by hand."""
    out = np.empty((*tokens.shape, 3), np.int32)
    grids = {0: {3: (2, 3)}, 1: {2: (1, 1), 6: (1, 2), 11: (1, 2)}}
    for sample, starts in grids.items():
        now = position = 0
        while position < tokens.shape[1]:
            if position not in starts:
                out[sample, position] = now
                now, position = now + 1, position + 1
                continue
            rows, columns = starts[position]
            for row in range(rows):
                for column in range(columns):
                    out[sample, position + row * columns + column] = (now, now + row, now + column)
            now, position = now + max(rows, columns), position + rows * columns
    return out


def our_batch(config: Qwen3VisionConfig, given: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The same for our modules; patch rows have room left."""
    vision, of_images = image_inputs(config, [[given["image.0"]], [given["image.1"]]], rows=28)
    more, of_films = video_inputs(config, [[], [given["film"]]], rows=20)
    tokens = given["tokens"]
    places = np.full((2, (28 + 20) // MERGE**2), tokens.shape[1], np.int32)
    for sample in range(2):
        for own, first, token in ((of_images, 0, IMAGE), (of_films, 28 // MERGE**2, VIDEO)):
            if own[sample]:
                places[sample, first + np.concatenate(own[sample])] = np.flatnonzero(tokens[sample] == token)
    llm = {
        "tokens": tokens, "image_positions": places, "coordinates": coordinates(tokens),
        **shifted(given["labels"], np.float32),
    }  # fmt: skip
    return {"vision": {**vision, **more}, "llm": llm}


def their_inputs(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same for transformers: patches of all pictures, each with its frame twice, and of the film."""
    pictures = [np.repeat(given[f"image.{i}"][None], TUBELET, axis=0) for i in range(2)]
    tokens = given["tokens"]
    return {
        "input_ids": tokens,
        "pixel_values": np.concatenate([_patches(picture) for picture in pictures]),
        "image_grid_thw": np.array([(1, *grid) for grid in GRIDS]),
        "pixel_values_videos": _patches(given["film"]),
        "video_grid_thw": np.array([(TUBELETS, *FILM)]),
        "mm_token_type_ids": (tokens == IMAGE) + 2 * (tokens == VIDEO),
    }


def _patches(frames: np.ndarray) -> np.ndarray:
    """As transformers' processors cut a film [F, H, W, 3]."""
    films, (height, width) = frames.transpose(0, 3, 1, 2), (side // SIDE for side in frames.shape[1:3])
    split = films.reshape(
        -1, TUBELET, 3, height // MERGE, MERGE, SIDE, width // MERGE, MERGE, SIDE
    )  # tubelet, frame, channel, then rows and columns
    return split.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * TUBELET * SIDE**2).copy()
