"""The interface of a dataset's format: random access to its samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from hetjax.data.media.held_media import HeldMedia
from hetjax.data.reading.media_folder import MediaFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One sample as its format has it.

    Attributes:
        text: the bytes of a JSON object, or the object itself, whose media may be bytes or `HeldMedia`s.
        where: opens every error about it: "file:line", lines counted from 1, or what names a sample of that format.
        media: what the format itself holds, by the names that the object calls them.
        folder: what gives the media of these names; None stands for files in the folder of the source.
        about: what the object has under keys that only tell about it, as "task" and "language".
    """

    text: bytes | Mapping[str, object]
    where: str
    media: Mapping[str, HeldMedia] = dataclasses.field(default_factory=dict)
    folder: MediaFolder | None = None
    about: Mapping[str, object] = dataclasses.field(default_factory=dict)


class Source(Protocol):
    """The samples of a dataset by index, which many threads may read at once.

    Attributes:
        path: the dataset, as the settings name it.
        folder: what paths of media files are relative to.
    """

    path: Path
    folder: Path

    def __init__(self, path: str | Path):
        """Raise DataError where the dataset cannot be read or has no sample."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int) -> Line:
        """Return the sample at an index below the length. Raises DataError where it cannot be read any more."""
