"""Read the records of an ArrayRecord file by index."""

from __future__ import annotations

from pathlib import Path

from hetjax.data.reading.signatures import check_signature
from hetjax.data.reading.source import Line
from hetjax.data.reading.webdataset import packed_sample
from hetjax.errors import DataError


class ArrayRecordSource:
    """The records of an ArrayRecord file: a JSON object each, or the tar of a WebDataset sample, which has media, too.

    grain reads them: nothing but the number of records is held in memory.

    Raises:
        DataError: the file is missing, of another format, damaged or empty.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.folder = self.path.parent
        check_signature(self.path, "ArrayRecord")
        try:
            from grain.sources import ArrayRecordDataSource  # only here: there is none for Windows

            self._records = ArrayRecordDataSource([str(self.path)])
        except ImportError as error:
            raise DataError(
                f"dataset '{path}' is ArrayRecord, which needs array_record; install it: pip install array_record"
            ) from error
        except (ValueError, RuntimeError, OSError) as error:
            raise DataError(f"dataset '{path}' cannot be read: {error}; get it anew") from error
        if not len(self._records):
            raise DataError(f"dataset '{path}' is empty; write a record for each sample")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Line:
        where = f"{self.path}:{index + 1}"
        try:
            record = self._records[index]
        except (ValueError, RuntimeError, OSError) as error:
            raise DataError(f"{where}: the record cannot be read: {error}") from error
        if record.lstrip()[:1] == b"{":
            return Line(text=record, where=where)
        return packed_sample(record, where)
