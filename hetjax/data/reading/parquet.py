"""Read the rows of a Parquet file by index."""

from __future__ import annotations

import collections
import threading
from pathlib import Path
from typing import Any

import numpy as np

from hetjax.data.reading.signatures import check_signature
from hetjax.data.reading.source import Line
from hetjax.errors import DataError

_CACHED = 256 << 20  # bytes of row groups that are kept in memory, of all files together


class ParquetSource:
    """The rows of a Parquet file. A lookup decodes the row group that the row is in, and keeps the latest of them.

    So rows of one row group are best read together: `blocks` has how many rows each group has, and samples are shuffled
    so that few groups are read at a time.

    Attributes:
        version: tells the file from another that takes its place.

    Raises:
        DataError: pyarrow is not installed; or the file is missing, of another format, damaged or empty.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.folder = self.path.parent
        check_signature(self.path, "Parquet")
        status = self.path.stat()
        self.version = (self.path.absolute(), status.st_ino, status.st_size, status.st_mtime_ns)
        with self._open() as file:
            groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        self.blocks = np.asarray(groups, np.int64)
        self._ends = np.cumsum(self.blocks)
        if not groups or not self._ends[-1]:
            raise DataError(f"dataset '{path}' is empty; give a Parquet file with a row for each sample")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Line:
        where = f"{self.path}:{index + 1}"
        group = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[group] - self.blocks[group])
        try:
            table = _GROUPS.get(self, group)
            values = table.slice(row, 1).to_pylist()[0]
        except (OSError, ValueError, IndexError) as error:  # ArrowInvalid is a ValueError
            raise DataError(f"{where}: the row cannot be read: {error}") from error
        return Line(text=values, where=where)

    def read(self, group: int) -> Any:
        """Return the rows of a group as a table of pyarrow."""
        with self._open() as file:
            return file.read_row_group(group)

    def _open(self) -> Any:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise DataError(
                f"dataset '{self.path}' is Parquet, which needs pyarrow; install it: pip install 'hetjax[parquet]'"
            ) from error
        try:
            return pyarrow.parquet.ParquetFile(self.path)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"dataset '{self.path}' cannot be read: {error}; get it anew") from error


class _RowGroups:
    """The row groups read last, of all files, shared by the threads of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: collections.OrderedDict[tuple[tuple[object, ...], int], Any] = collections.OrderedDict()
        self._reading: dict[tuple[tuple[object, ...], int], threading.Lock] = {}

    def get(self, source: ParquetSource, group: int) -> Any:
        key = (source.version, group)
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
                return self._tables[key]
            reading = self._reading.setdefault(key, threading.Lock())
        with reading:  # one thread reads a group, the others that want it wait for it
            with self._lock:
                if key in self._tables:
                    return self._tables[key]
            table = source.read(group)
            with self._lock:
                self._tables[key] = table
                self._reading.pop(key, None)
                while len(self._tables) > 1 and sum(each.nbytes for each in self._tables.values()) > _CACHED:
                    self._tables.popitem(last=False)
            return table


_GROUPS = _RowGroups()
