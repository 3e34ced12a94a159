"""Samples whose text is tokens already, as `hetjax data convert` writes them.

Such a sample holds the ids, what the loss counts of them, its media, and where their placeholders stand. With it stand
checksums of what made it: of the tokenizer, the chat template, and the settings by which media become placeholders. A
run that has others is told so, instead of training on tokens that mean something else to it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from hetjax.errors import DataError

# L ids of the sample

KEY = "pretokenized"
"""The key of a sample that holds all of it."""
_FIELDS = {"tokens": list, "counted": list, "media": list, "text_tokens": int, "made_by": dict}
_WORDS = {
    "tokenizer": "tokenizer",
    "template": "chat template or template_options",
    "media": "resolution, frames, clip_seconds, context or other settings of media, or encoder",
}


class StoredMedium(NamedTuple):
    """A medium by its name, and its placeholders as runs of ids: (kind, first, count)."""

    kind: str
    name: str
    placeholders: tuple[tuple[str, int, int], ...]

    def positions(self) -> dict[str, list[int]]:
        """Return the positions of the placeholders among the ids, by kind."""
        found: dict[str, list[int]] = {}
        for kind, first, count in self.placeholders:
            found.setdefault(kind, []).extend(range(first, first + count))
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretokenized:
    """A sample as tokens.

    Attributes:
        ids: its tokens, placeholders among them.
        counted: runs of ids that the loss counts: (first, behind the last, weight).
        media: in the order of the prompt.
        text_tokens: tokens without those that stand for media, where one of these shares the context with them, else
            0; all tokens where there are no media.
        made_by: checksums of what made it.
    """

    ids: Int32[np.ndarray, " L"]
    counted: tuple[tuple[int, int, float], ...]
    media: tuple[StoredMedium, ...]
    text_tokens: int
    made_by: Mapping[str, str]

    @staticmethod
    def of(value: object) -> Pretokenized:
        """Return what a sample holds. Raises DataError where it is malformed."""
        if not isinstance(value, Mapping) or set(value) != set(_FIELDS):
            raise DataError(f"'{KEY}' must be an object with {', '.join(_FIELDS)}; write it by `hetjax data convert`")
        for field, kind in _FIELDS.items():
            if not isinstance(value[field], kind):
                raise DataError(f"'{KEY}.{field}' is no {kind.__name__}; write it by `hetjax data convert`")
        try:
            return Pretokenized(
                ids=np.asarray(value["tokens"], np.int32).reshape(-1),
                counted=tuple((int(start), int(stop), float(weight)) for start, stop, weight in value["counted"]),
                media=tuple(
                    StoredMedium(kind, name, tuple((each, int(first), int(count)) for each, first, count in places))
                    for kind, name, places in value["media"]
                ),
                text_tokens=value["text_tokens"],
                made_by=value["made_by"],
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"'{KEY}' is malformed: {error}; write it by `hetjax data convert`") from error

    def as_json(self) -> dict[str, object]:
        """Return the object that `of` reads."""
        return {
            "tokens": self.ids.tolist(),
            "counted": [list(each) for each in self.counted],
            "media": [[each.kind, each.name, [list(run) for run in each.placeholders]] for each in self.media],
            "text_tokens": self.text_tokens,
            "made_by": dict(self.made_by),
        }

    def weights(self) -> Float32[np.ndarray, " L"]:
        """Return what each token counts in the loss."""
        weights = np.zeros(len(self.ids), np.float32)
        for start, stop, weight in self.counted:
            weights[start:stop] = weight
        return weights

    def check_made_by(self, own: Mapping[str, str]) -> None:
        """Raise DataError where something else made the sample than a run has."""
        other = [words for name, words in _WORDS.items() if self.made_by.get(name) != own[name]]
        if other:
            raise DataError(
                f"the sample was tokenized with another {' and another '.join(other)} than this run has; set what it "
                "was converted with, or convert the data anew (hetjax data convert)"
            )


def runs_of(weights: Float32[np.ndarray, " L"]) -> tuple[tuple[int, int, float], ...]:
    """Return runs of one weight above 0: (first, behind the last, weight)."""
    borders = np.flatnonzero(np.diff(weights, prepend=0, append=0))
    pairs = zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)
    return tuple((start, stop, float(weights[start])) for start, stop in pairs if weights[start])


def position_runs(kind: str, positions: Sequence[int]) -> list[tuple[str, int, int]]:
    """Return positions that follow each other as runs: (kind, first, count)."""
    places = np.asarray(positions, np.int64)
    starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    counts = np.diff([*starts, len(places)])
    return [(kind, int(places[start]), int(count)) for start, count in zip(starts, counts, strict=True)]


def checksum(*values: object) -> str:
    """Return a short checksum of values by their texts."""
    return hashlib.sha256("\0".join(map(str, values)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
