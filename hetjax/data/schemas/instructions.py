"""Samples without turns: Alpaca, prompts with answers, and plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hetjax.data.schemas.columns import likely, without
from hetjax.data.schemas.media_values import kinds, lists
from hetjax.errors import DataError

_ANSWERS = {"prompt": ("completion", "response", "answer", "output"), "question": ("answer", "response", "output")}
_TEXTS = ("text", "txt", "caption")


class Turns(NamedTuple):
    """The turns of a sample, and what of it is left."""

    turns: list[object]
    left: dict[str, object]


def as_turns(sample: Mapping[str, object], where: str) -> Turns | None:
    """Return the turns of a sample without any by what its keys say; None where they say nothing. Raises DataError.

    - "instruction", "input" (below the instruction, where it is not empty), "output", "history" [[asked, answered], …];
    - "prompt" with "completion", "response", "answer" or "output", or "question" with an answer: texts, or messages;
    - "text" (also "txt", "caption"): said by an assistant, in answer to the media where there are some.
    """
    if "instruction" in sample:
        return _alpaca(sample, where)
    for question, answers in _ANSWERS.items():
        if question in sample:
            answer = next((name for name in answers if name in sample), None)
            if answer is None:
                raise _missing(answers, sample, where)
            turns = [*_said("user", sample[question]), *_said("assistant", sample[answer])]
            return Turns(turns, without(sample, question, answer))
    for name in _TEXTS:
        if name in sample:
            return _text(sample, name, where)
    return None


def _alpaca(sample: Mapping[str, object], where: str) -> Turns:
    answer = next((name for name in ("output", "response", "answer") if name in sample), None)
    if answer is None:
        raise _missing(("output",), sample, where)
    turns: list[object] = []
    history = sample.get("history", [])
    if not isinstance(history, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        raise DataError(f"{where}: 'history' must be a list of pairs [asked, answered], not {history!r}")
    for asked, answered in history:
        turns += [*_said("user", asked), *_said("assistant", answered)]
    asked = sample["instruction"]
    if sample.get("input"):
        asked = f"{asked}\n{sample['input']}"
    turns += [*_said("user", asked), *_said("assistant", sample[answer])]
    return Turns(turns, without(sample, "instruction", "input", "history", answer))


def _text(sample: Mapping[str, object], name: str, where: str) -> Turns:
    text, has_media = sample[name], any(sample.get(key) for key in (*kinds(), *lists()))
    if has_media and isinstance(text, str) and any(f"<{kind}>" in text for kind in kinds()):
        raise DataError(
            f"{where}: '{name}' has marks of media between its words; write it as messages whose user's turns have them"
        )
    return Turns(
        [*([{"role": "user", "content": ""}] if has_media else []), *_said("assistant", text)], without(sample, name)
    )


def _said(role: str, value: object) -> list[object]:
    """Return a text as a message; messages are what they are."""
    if (
        isinstance(value, list | tuple)
        and value
        and all(isinstance(each, Mapping) and "role" in each for each in value)
    ):
        return list(value)
    return [{"role": role, "content": value}]


def _missing(wanted: tuple[str, ...], sample: Mapping[str, object], where: str) -> DataError:
    names = " or ".join(f"'{name}'" for name in wanted)
    return DataError(f"{where}: the sample has no {names}{likely(wanted[0], sample)}; its keys are {', '.join(sample)}")
