"""Order the texts and placeholders that stand for images, videos and audio in a prompt.

It is that of Nemotron 3 Nano Omni. An image is `<img>` n times `<image>` `</img>`; audio is `<so_start>` n times
`<so_embedding>` `<so_end>`; a video is a line for each tubelet, `Frame 1 sampled at 0.00 seconds and frame 2 sampled at
0.50 seconds: ` and the tubelet as an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

TimeLines = Literal["frames", "seconds"]
"""Text ahead of each tubelet: the number and time of every frame, or as in Qwen3-VL its middle, "<0.2 seconds>"."""
AudioInVideo = Literal["none", "after_marker", "after_frames", "interleaved"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """`count` placeholders of encoder tokens between the tokens that open and close them.

    `kind` is the name of their `hetjax.data.modalities.Placeholder`: "image", of images and of videos, or "audio".
    """

    kind: str
    count: int


Item = str | Tokens


def image_items(tokens: int) -> list[Item]:
    """Return the items of an image of so many tokens."""
    return [Tokens(kind="image", count=tokens)]


def audio_items(tokens: int) -> list[Item]:
    """Return the items of an audio of so many tokens, all its clips together."""
    return [Tokens(kind="audio", count=tokens)]


def video_items(
    times: Sequence[float],
    frames_per_tubelet: int,
    tokens: int,
    *,
    clips: Sequence[tuple[float, int]] = (),
    order: AudioInVideo = "none",
    prefix: str = "",
    lines: TimeLines = "frames",
) -> list[Item]:
    """Return the items of a video with its audio, whose frames are shown at these seconds.

    Args:
        times: seconds of each frame; those of one tubelet follow each other, and the last tubelet may be short.
        frames_per_tubelet: frames that a tubelet spans.
        tokens: tokens of a tubelet.
        clips: (second at which it ends, tokens) of each clip of its audio.
        order: where the audio stands: before the frames, behind them, or each clip behind the tubelets that begin
            before it ends.
        prefix: text ahead of it all.
        lines: what stands ahead of each tubelet.
    """
    starts = range(0, len(times), frames_per_tubelet)
    audio = audio_items(sum(count for _, count in clips)) if clips and order != "none" else []
    items: list[Item] = [prefix] if prefix else []
    if order == "after_marker":
        items += audio
    left = list(clips) if order == "interleaved" else []
    for start in starts:
        while left and times[start] >= left[0][0]:
            items += ["\n", *audio_items(left.pop(0)[1])]
        stop = min(start + frames_per_tubelet, len(times))
        if lines == "seconds":
            # A last tubelet that is short repeats its last frame, at the same time.
            middle = (times[start] + times[stop - 1]) / 2
            line = f"<{middle:.1f} seconds>"
        else:
            line = _frame_line(times, start, stop)
        items += [line, Tokens(kind="image", count=tokens)]
    if order == "after_frames":
        items += audio
    for _, count in left:
        items += ["\n", *audio_items(count)]
    return items


def _frame_line(times: Sequence[float], start: int, stop: int) -> str:
    said = " and ".join(
        f"{'Frame' if frame == start else 'frame'} {frame + 1} sampled at {times[frame]:.2f} seconds"
        for frame in range(start, stop)
    )
    return f"\n{said}: " if start else f"{said}: "
