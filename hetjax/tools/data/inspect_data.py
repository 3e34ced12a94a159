"""hetjax data inspect: samples of a run as the model gets them, and what the loss counts of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from hetjax.config.build_loader import make_loader
from hetjax.config.run_config import TrainConfig
from hetjax.data import SampleLoader, Source
from hetjax.data.bad_samples import reason_of
from hetjax.data.chat import Chat
from hetjax.data.chat.expanded_text import ExpandedText
from hetjax.data.chat.processor import ProcessedChat
from hetjax.errors import ConfigError
from hetjax.tools.data.media_pictures import Picture, pictures_of
from hetjax.tools.data.report_page import ShownMedium, ShownSample, write_page
from hetjax.tools.outcome import Json, Outcome
from hetjax.tools.pictures import output_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectedSample:
    """A sample as the model gets it.

    Attributes:
        where: its name; of one with an error it is in the error.
        text: the text that is tokenized, placeholders included, in pieces: (text, whether the loss counts it).
        tokens: its ids.
        counted: tokens that the loss counts.
        media: kind, file, shape of the array, and the seconds of a video's frames.
        error: why it cannot be used, or None.
        pictures: of each medium.
    """

    where: str = ""
    text: Sequence[tuple[str, bool]] = ()
    tokens: Sequence[int] = ()
    counted: int = 0
    media: Sequence[dict[str, Json]] = ()
    error: str | None = None
    pictures: Sequence[Sequence[Picture]] = ()

    def as_json(self) -> dict[str, Json]:
        """Return what --json prints."""
        return {
            "text": "".join(piece for piece, _ in self.text),
            "tokens": list(self.tokens),
            "counted": [piece for piece, counts in self.text if counts],
            "media": list(self.media),
            "error": self.error,
        }

    def on_page(self) -> ShownSample:
        """Return what is shown on the page."""
        media = [
            ShownMedium(f"{each['kind']} {each['file']} {each['shape']}", pictures)
            for each, pictures in zip(self.media, self.pictures, strict=True)
        ]
        return ShownSample(
            where=self.where, text=self.text, tokens=len(self.tokens), counted=self.counted, media=media,
            error=self.error,
        )  # fmt: skip

    def shown(self) -> Iterator[RenderableType]:
        """Yield what is printed for people."""
        if self.error is not None:
            yield Text(self.error, style="red")
            return
        yield Text(f"{self.where}: {len(self.tokens)} tokens, {self.counted} of them in the loss", style="bold")
        for each in self.media:
            times = each["times"]
            seconds = f", frames at {', '.join(f'{time:.2f}' for time in times)} s" if times else ""
            yield Text(f"  {each['kind']} {each['file']} {each['shape']}{seconds}", style="cyan")
        words = Text()
        for piece, counts in self.text:
            words.append(piece, style="black on green" if counts else None)
        yield words


def inspect_data(
    *,
    config: TrainConfig,
    source: Literal["train", "eval"] = "train",
    index: int | None = None,
    samples: int = 4,
    out: str | None = None,
    of: int = 500,
) -> Outcome:
    """Show samples of a run's data as the model gets them, what the loss counts of them in colour.

    Args:
        config: The settings of the run.
        source: Which data: train or eval, whose samples are shown as in training.
        index: The number of the only sample to show, from 0.
        samples: How many of the first samples are shown without an index.
        out: Page to write, .html: these samples with pictures of their media, lengths, padding, how unevenly encoders
            are loaded, and what is skipped and why.
        of: How many samples of an epoch the figures of the page are of, at most.
    """
    if of < 1:
        raise ConfigError(f"of is {of}; give 1 or more samples")
    path = None if out is None else output_path(out, (".html",))
    if source == "eval" and config.data.eval is None:
        raise ConfigError("data.eval is null, so there is nothing to inspect; give --source train")
    loader = make_loader(config.data, config.model)
    opened = loader.trained.joined if source == "train" else loader.held_out
    if index is not None and not 0 <= index < len(opened):
        raise ConfigError(f"--index is {index}, but '{opened.path}' has {len(opened)} samples, counted from 0")
    numbers = range(min(samples, len(opened))) if index is None else [index]
    found = [_inspect(loader, opened, number, with_pictures=path is not None) for number in numbers]
    shown = tuple(each for sample in found for each in sample.shown())
    if path is not None:
        write_page(path, config, loader, source, [each.on_page() for each in found], of)
        shown = (*shown, f"wrote {path}")
    return Outcome(numbers=[sample.as_json() for sample in found], shown=shown)


def _inspect(loader: SampleLoader, source: Source, number: int, *, with_pictures: bool) -> InspectedSample:
    try:
        chat = loader.parse(source, number)
        made = loader.processor.process(chat, training=True)
    except Exception as error:
        return InspectedSample(error=reason_of(error, source, number))
    media = [_medium(chat, made, number) for number in range(len(made.raw))]
    return InspectedSample(
        where=chat.where,
        text=list(_pieces(made.text or loader.processor.spelled(chat.pretokenized))),
        tokens=made.sample.ids.tolist(),
        counted=int((made.sample.weights > 0).sum()),
        media=media,
        pictures=[_pictures(loader, made, number, each["times"]) for number, each in enumerate(media) if with_pictures],
    )


def _pictures(loader: SampleLoader, made: ProcessedChat, number: int, times: Sequence[float] | None) -> list[Picture]:
    arrays: dict[str, list[np.ndarray]] = {}
    for medium in made.parts[number].media:
        arrays.setdefault(medium.modality, []).append(medium.array)
    config = loader.processor.config
    groups = [pictures_of(each, times, config.pixel_mean, config.pixel_std) for each in arrays.values()]
    return [picture for group in groups for picture in group]


def _pieces(text: ExpandedText) -> Iterator[tuple[str, bool]]:
    last = 0
    for span in text.counted:
        yield text.text[last : span.start], False
        yield text.text[span.start : span.stop], True
        last = span.stop
    yield text.text[last:], False


def _medium(chat: Chat, made: ProcessedChat, number: int) -> dict[str, Json]:
    """Return what is shown of a medium; clips of an audio are shown as one."""
    part, raw = chat.media[number], made.raw[number]
    arrays = [each.array for each in made.parts[number].media if each.modality == part.kind]
    shape = [sum(len(array) for array in arrays), *arrays[0].shape[1:]] if arrays else []
    times = getattr(getattr(raw, "video", None), "times", None)
    return {
        "kind": part.kind,
        "file": str(part.value),
        "shape": [int(size) for size in shape],
        "times": None if times is None else [float(time) for time in times],
    }
