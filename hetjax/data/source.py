"""The interface of a dataset's format: random access to its samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One sample: the bytes of a JSON object with the key "messages", and where it stands.

    `where` opens every error about it: "file:line", lines counted from 1, or what names a sample of that format.
    """

    text: bytes
    where: str


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
