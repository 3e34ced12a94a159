"""The formats of datasets, by the suffix of their files.

To add one, write a class with the members of `hetjax.data.source.Source` in a file of its own and list it here; a
program of one's own calls `register_format` instead.
"""

from __future__ import annotations

from pathlib import Path

from hetjax.data.jsonl import JsonlSource
from hetjax.data.source import Source

FORMATS: dict[str, type[Source]] = {".jsonl": JsonlSource}
"""By suffix; a file of another one is read as JSONL."""


def register_format(suffix: str, source: type[Source]) -> None:
    """Let datasets whose path ends in `suffix` (".csv") be read by `source`."""
    FORMATS[suffix] = source


def open_source(path: str | Path) -> Source:
    """Open a dataset by the format of its suffix. Raises DataError where it cannot be read or has no sample."""
    return FORMATS.get(Path(path).suffix, JsonlSource)(path)
