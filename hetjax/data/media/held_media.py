"""Media that are no files of their own: members of a shard, cells of a table."""

from __future__ import annotations

import abc
import dataclasses
import io
from pathlib import Path
from typing import BinaryIO


class HeldMedia(abc.ABC):
    """Media that a dataset itself holds, opened when they are decoded: a process that decodes none reads none.

    `str` of one is what errors call it.
    """

    @abc.abstractmethod
    def open(self) -> BinaryIO:
        """Return a new file of its bytes, at their beginning. Raises OSError."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaBytes(HeldMedia):
    """Media held in memory."""

    name: str
    data: bytes = dataclasses.field(repr=False)

    def open(self) -> BinaryIO:
        """Return a new file of the bytes."""
        return io.BytesIO(self.data)

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaRange(HeldMedia):
    """Media that are `size` bytes of a larger file, from byte `offset` on."""

    path: Path
    name: str
    offset: int
    size: int

    def open(self) -> BinaryIO:
        """Return a new file of these bytes. Raises OSError."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))

    def __str__(self) -> str:
        return f"{self.path}/{self.name}"
