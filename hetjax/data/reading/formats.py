"""The formats of datasets, by the suffix of their files.

To add one, write a class with the members of `hetjax.data.reading.source.Source` in a file of its own and list it here;
a program of one's own calls `register_format` instead.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hetjax.data.reading.array_record import ArrayRecordSource
from hetjax.data.reading.files import data_files, suffix_of
from hetjax.data.reading.json_array import open_json
from hetjax.data.reading.jsonl import JsonlSource
from hetjax.data.reading.parquet import ParquetSource
from hetjax.data.reading.signatures import first_byte, signature
from hetjax.data.reading.source import Source
from hetjax.data.reading.webdataset import WebDatasetSource
from hetjax.errors import DataError

FORMATS: dict[str, Callable[[Path], Source]] = {
    ".jsonl": JsonlSource,
    ".ndjson": JsonlSource,
    ".json": open_json,
    ".parquet": ParquetSource,
    ".arrayrecord": ArrayRecordSource,
    ".array_record": ArrayRecordSource,
    ".tar": WebDatasetSource,
}
"""What opens a file, by its suffix."""

_PACKED = (".gz", ".tgz", ".zst", ".bz2", ".xz", ".zip", ".arrow")  # found in folders to be refused with the reason
_THREADS = 16  # that open files, which on a disk of a network is waiting


def register_format(suffix: str, source: Callable[[Path], Source]) -> None:
    """Let the files of datasets whose names end in `suffix` (".csv") be read by `source`."""
    FORMATS[suffix] = source


def files_of(path: str | Path, split: str | None = None) -> list[Path]:
    """Return the files of a dataset: a file, a folder or a glob (see `data_files`). Raises DataError."""
    return data_files(str(path), (*FORMATS, *_PACKED), split)


def open_files(path: str | Path, split: str | None = None) -> list[Source]:
    """Open the files of a dataset: a file, a folder or a glob (see `data_files`). Raises DataError."""
    files = files_of(path, split)
    with ThreadPoolExecutor(min(_THREADS, len(files))) as pool:
        return list(pool.map(lambda file: _open(file, split), files))


def _open(file: Path, split: str | None) -> Source:
    suffix = suffix_of(file, FORMATS)
    if suffix is not None:
        opener = FORMATS[suffix]
        return open_json(file, split) if opener is open_json else opener(file)
    found = signature(file)
    if found is not None:
        raise DataError(f"dataset '{file}' is {found[0]}; {found[1]}")
    if first_byte(file) in (b"{", b"["):
        return open_json(file, split)
    raise DataError(
        f"dataset '{file}': no format has the suffix '{file.suffix}', and it is no JSON; "
        f"give a file of {', '.join(FORMATS)}"
    )
