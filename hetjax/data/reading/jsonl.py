"""Read a JSONL file of any size by the number of a line."""

from __future__ import annotations

import codecs
from array import array
from pathlib import Path

import numpy as np

from hetjax.data.reading.signatures import check_signature
from hetjax.data.reading.source import Line
from hetjax.errors import DataError


class JsonlSource:
    """The non-blank lines of a JSONL file by index; a byte order mark is skipped, and lines may end as on Windows.

    Only an index of 8 bytes a line, and of 8 a blank one, is held in memory. A lookup opens the file anew, so that a
    source has no state to share: it may be read from many threads at once, forked and pickled.

    Raises:
        DataError: the file is missing, unreadable, of another format or has no line; or it changed so that a line is
            gone.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.folder = self.path.parent
        starts, blanks = array("q"), array("q")
        check_signature(self.path, "JSONL")
        try:
            with self.path.open("rb") as file:
                position = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
                file.seek(position)
                for text in file:
                    if text.isspace():
                        blanks.append(len(starts))
                    else:
                        starts.append(position)
                    position += len(text)
        except OSError as error:
            raise DataError(f"dataset '{path}' cannot be read: {error.strerror}; give a readable JSONL file") from error
        if not starts:
            raise DataError(f"dataset '{path}' is empty; give a JSONL file with a conversation on each line")
        self._starts = np.frombuffer(starts, np.int64)
        self._blanks = np.frombuffer(blanks, np.int64)  # how many lines stand before each blank one

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Line:
        try:
            with self.path.open("rb") as file:
                file.seek(self._starts[index])
                text = file.readline()
        except OSError as error:
            raise DataError(f"{self._where(index)}: the line cannot be read: {error.strerror}") from error
        return Line(text=text, where=self._where(index))

    def _where(self, index: int) -> str:
        return f"{self.path}:{index + 1 + int(np.searchsorted(self._blanks, index, side='right'))}"
