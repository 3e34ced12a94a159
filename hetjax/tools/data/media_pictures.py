"""Pictures of what encoders get: images, frames with times, spectrograms."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from hetjax.data.media import SAMPLE_RATE

# F frames · H, W pixels · L samples

_SIDE = 320  # pixels of a picture on the page
_FRAMES = 24  # of a video on the page


class Picture(NamedTuple):
    """A picture as a data URI, and what stands below it."""

    uri: str
    words: str


def pictures_of(
    arrays: Sequence[np.ndarray],
    times: Sequence[float] | None,
    mean: Sequence[float],
    std: Sequence[float],
) -> list[Picture]:
    """Return pictures of the arrays of one medium, as its encoder gets them.

    Normalized pixels [H, W, 3] and [F, H, W, 3] become pictures again; samples at 16 kHz [L] a spectrogram of all
    arrays. Of a video of many frames evenly spread ones are shown. Other arrays have no picture.
    """
    if arrays and all(array.ndim == 1 for array in arrays):
        return [_spectrogram(np.concatenate(arrays))]
    pictures: list[Picture] = []
    for array in arrays:
        if array.ndim == 3 and array.shape[-1] == 3:
            pictures.append(Picture(_pixels(array, mean, std), f"{array.shape[1]} x {array.shape[0]}"))
        if array.ndim == 4 and array.shape[-1] == 3:
            shown = np.unique(np.linspace(0, len(array) - 1, min(len(array), _FRAMES)).astype(int))
            for number in shown.tolist():
                is_shown = times is not None and number < len(times)
                words = f"{times[number]:.2f} s" if is_shown else "fills the last tubelet"
                pictures.append(Picture(_pixels(array[number], mean, std), words))
    return pictures


def png_uri(data: bytes) -> str:
    """Return the bytes of a PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _pixels(array: Float32[np.ndarray, "H W 3"], mean: Sequence[float], std: Sequence[float]) -> str:
    pixels = (array * np.float32(std) + np.float32(mean)) * 255
    image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    scale = _SIDE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    target = io.BytesIO()
    image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC).save(target, "PNG")
    return png_uri(target.getvalue())


def _spectrogram(samples: Float32[np.ndarray, " L"]) -> Picture:
    figure = Figure(figsize=(5, 2), dpi=90, layout="constrained")
    axes = figure.add_subplot()
    width = min(400, len(samples))
    if width < 2 or not samples.any():
        axes.plot(np.arange(len(samples)) / SAMPLE_RATE, samples)
    else:
        overlap = width // 2 if len(samples) > width else 0
        axes.specgram(samples + np.float32(1e-7), NFFT=width, Fs=SAMPLE_RATE, noverlap=overlap, cmap="magma")
        axes.set_ylabel("Hz")
    axes.set_xlabel("s")
    target = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(target, format="png")
    return Picture(png_uri(target.getvalue()), f"{len(samples) / SAMPLE_RATE:.2f} s at {SAMPLE_RATE // 1000} kHz")
