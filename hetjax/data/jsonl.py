"""Read a JSONL file of any size by the number of a line."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from hetjax.data.source import Line
from hetjax.errors import DataError


class JsonlSource:
    """The non-blank lines of a JSONL file by index.

    Only an index of 16 bytes a line is held in memory. A lookup opens the file anew, so that a source has
    no state to share: it may be read from many threads at once, forked and pickled.

    Raises:
        DataError: the file is missing, unreadable or has no line; or it changed so that a line is gone.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.folder = self.path.parent
        starts, numbers = array("q"), array("q")
        position = 0
        try:
            with self.path.open("rb") as file:
                for number, text in enumerate(file, start=1):
                    if not text.isspace():
                        starts.append(position)
                        numbers.append(number)
                    position += len(text)
        except OSError as error:
            raise DataError(f"dataset '{path}' cannot be read: {error.strerror}; give a readable JSONL file") from error
        if not starts:
            raise DataError(f"dataset '{path}' is empty; give a JSONL file with a conversation on each line")
        self._starts = np.frombuffer(starts, np.int64)
        self._numbers = np.frombuffer(numbers, np.int64)

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
        return f"{self.path}:{self._numbers[index]}"
