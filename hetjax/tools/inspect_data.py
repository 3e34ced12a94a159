"""hetjax data inspect: samples of a run as the model gets them, and what the loss counts of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from rich.console import RenderableType
from rich.text import Text

from hetjax.config.build_loader import make_loader
from hetjax.config.run_config import TrainConfig
from hetjax.data import SampleLoader, Source
from hetjax.data.bad_samples import reason_of
from hetjax.data.chat import Chat
from hetjax.data.chat.processor import ProcessedChat
from hetjax.errors import ConfigError
from hetjax.tools.outcome import Json, Outcome


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
    """

    where: str = ""
    text: Sequence[tuple[str, bool]] = ()
    tokens: Sequence[int] = ()
    counted: int = 0
    media: Sequence[dict[str, Json]] = ()
    error: str | None = None

    def as_json(self) -> dict[str, Json]:
        """Return what --json prints."""
        return {
            "text": "".join(piece for piece, _ in self.text),
            "tokens": list(self.tokens),
            "counted": [piece for piece, counts in self.text if counts],
            "media": list(self.media),
            "error": self.error,
        }

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
    *, config: TrainConfig, source: Literal["train", "eval"] = "train", index: int | None = None, samples: int = 4
) -> Outcome:
    """Show samples of a run's data as the model gets them, what the loss counts of them in colour.

    Args:
        config: The settings of the run.
        source: Which data: train or eval, whose samples are shown as in training.
        index: The number of the only sample to show, from 0.
        samples: How many of the first samples are shown without an index.
    """
    if source == "eval" and config.data.eval is None:
        raise ConfigError("data.eval is null, so there is nothing to inspect; give --source train")
    loader = make_loader(config.data, config.model)
    opened = loader.trained.joined if source == "train" else loader.held_out
    if index is not None and not 0 <= index < len(opened):
        raise ConfigError(f"--index is {index}, but '{opened.path}' has {len(opened)} samples, counted from 0")
    numbers = range(min(samples, len(opened))) if index is None else [index]
    found = [_inspect(loader, opened, number) for number in numbers]
    shown = tuple(each for sample in found for each in sample.shown())
    return Outcome(numbers=[sample.as_json() for sample in found], shown=shown)


def _inspect(loader: SampleLoader, source: Source, number: int) -> InspectedSample:
    try:
        chat = loader.parse(source, number)
        made = loader.processor.process(chat, training=True)
    except Exception as error:
        return InspectedSample(error=reason_of(error, source, number))
    return InspectedSample(
        where=chat.where,
        text=list(_pieces(made)),
        tokens=made.sample.ids.tolist(),
        counted=int((made.sample.weights > 0).sum()),
        media=[_medium(chat, made, number) for number in range(len(made.raw))],
    )


def _pieces(made: ProcessedChat) -> Iterator[tuple[str, bool]]:
    last = 0
    for span in made.text.counted:
        yield made.text.text[last : span.start], False
        yield made.text.text[span.start : span.stop], True
        last = span.stop
    yield made.text.text[last:], False


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
