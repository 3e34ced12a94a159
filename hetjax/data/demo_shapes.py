"""Write a made-up dataset of images, audio and videos: coloured shapes, tones and moving squares, with questions.

Of the samples, a third shows an image of a shape ("Which colour?", "Which shape?"), a third plays a tone ("How high?")
and a third shows a video of four frames ("Where does it move?"). All is drawn here, the same for the same seed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import av
import numpy as np
import soundfile
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw

from hetjax.data.atomic_folder import write_whole
from hetjax.errors import ConfigError

# H, W pixels · F frames

SIDE = 16
COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 230), "white": (240, 240, 240)}
SHAPES = ("circle", "square", "bar")
TONES = {"low": (220, 330), "middle": (700, 1000), "high": (2000, 3000)}
"""Lowest and highest hertz of what an answer calls so."""
MOVES = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
"""Rows and columns from one frame to the next."""
_RATE = 8000  # of the files: half of what encoders take, so that reading resamples
_SECONDS = 0.3
_FRAMES, _FPS, _STEP = 4, 2, 3


def write_shapes(folder: str | os.PathLike[str], *, samples: int = 1200, seed: int = 0) -> Path:
    """Write `train.jsonl`, `heldout.jsonl` (a sixth of the samples) and `media/` into `folder`, and return it.

    The folder appears whole or not at all. A folder that holds these very files already is left as it is.

    Raises:
        ConfigError: fewer than 6 samples.
        DataError: `folder` holds other files, or cannot be written.
    """
    if samples < 6:
        raise ConfigError(f"samples is {samples}; give 6 or more, of which one is held out")

    def write(partial: Path) -> None:
        (partial / "media").mkdir()
        lines = [_sample(partial, i, np.random.default_rng((seed, i))) for i in range(samples)]
        held_out = samples // 6
        (partial / "heldout.jsonl").write_text("".join(lines[:held_out]), encoding="utf-8")
        (partial / "train.jsonl").write_text("".join(lines[held_out:]), encoding="utf-8")

    return write_whole(folder, write, what="shapes")


def _sample(folder: Path, index: int, random: np.random.Generator) -> str:
    """Write the media of a sample, and return its line of the dataset."""
    kind = ("image", "audio", "video")[index % 3]
    name = f"media/{index:05d}.{ {'image': 'png', 'audio': 'wav', 'video': 'mp4'}[kind] }"
    if kind == "image":
        colour, shape = random.choice(list(COLOURS)), random.choice(SHAPES)
        Image.fromarray(picture(str(colour), str(shape), random)).save(folder / name)
        question, answer = (("Which colour?", colour), ("Which shape?", shape))[random.integers(2)]
    elif kind == "audio":
        question, answer = "How high?", random.choice(list(TONES))
        soundfile.write(folder / name, tone(str(answer), random), _RATE)
    else:
        question, answer = "Where does it move?", random.choice(list(MOVES))
        _write_video(folder / name, moving_square(str(answer), random))
    user = {"role": "user", "content": [{"type": kind, kind: name}, {"type": "text", "text": question}]}
    return json.dumps({"messages": [user, {"role": "assistant", "content": str(answer)}]}) + "\n"


def picture(colour: str, shape: str, random: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a shape somewhere on dark ground."""
    image = Image.new("RGB", (SIDE, SIDE), (20, 20, 20))
    size = int(random.integers(8, 12))
    left, top = (int(place) for place in random.integers(0, SIDE - size, 2))
    height = size // 3 if shape == "bar" else size
    box = (left, top, left + size - 1, top + height - 1)
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=COLOURS[colour])
    return np.asarray(image)


def tone(height: str, random: np.random.Generator) -> Float32[np.ndarray, " samples"]:
    """Return a sine of the height that an answer names, with some noise."""
    hertz, times = random.uniform(*TONES[height]), np.arange(int(_SECONDS * _RATE)) / _RATE
    wave = random.uniform(0.3, 0.7) * np.sin(2 * np.pi * (hertz * times + random.uniform()))
    return (wave + random.normal(0, 0.01, len(times))).astype(np.float32)


def moving_square(move: str, random: np.random.Generator) -> UInt8[np.ndarray, "F H W 3"]:
    """Draw the frames of a white square that moves some pixels a frame."""
    rows, columns = MOVES[move]
    frames = np.full((_FRAMES, SIDE, SIDE, 3), 20, np.uint8)
    size, way = 5, _STEP * (_FRAMES - 1)
    # It begins where the way fits in, and somewhere across the way.
    along = int(random.integers(0, SIDE - size - way + 1))
    across = int(random.integers(0, SIDE - size + 1))
    for i in range(_FRAMES):
        place = along + (_STEP * i if rows + columns > 0 else way - _STEP * i)
        top, left = (place, across) if rows else (across, place)
        frames[i, top : top + size, left : left + size] = 240
    return frames


def _write_video(path: Path, frames: UInt8[np.ndarray, "F H W 3"]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=_FPS)
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = SIDE, SIDE, "yuv420p", 1
        stream.bit_rate = 400_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
