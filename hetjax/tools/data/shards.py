"""Write samples to numbered shards of ArrayRecord or WebDataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from hetjax.errors import DataError
from hetjax.tools.data.embedded import END_OF_TAR, Member, tar_of

Format = Literal["arrayrecord", "webdataset"]
SUFFIXES = {"arrayrecord": ".arrayrecord", "webdataset": ".tar"}


class ShardWriter:
    """Writes samples to shards of a folder, the next one when one has `per_shard` of them.

    A sample is the object of JSON with the media that it names. In ArrayRecord it is a record: the JSON, or with media
    a tar of both; in WebDataset files one behind the other.
    """

    def __init__(self, folder: Path, kind: Format, *, per_shard: int):
        self._folder, self._kind, self._per_shard = folder, kind, per_shard
        self._open: Any = None
        self.shards = self.samples = 0

    def write(self, text: bytes, media: Sequence[Member]) -> None:
        """Write the next sample."""
        if self.samples % self._per_shard == 0:
            self.close()
            path = self._folder / f"part-{self.shards:05}{SUFFIXES[self._kind]}"
            self._open = _array_record(path) if self._kind == "arrayrecord" else _Tar(path)
            self.shards += 1
        key = f"{self.samples:09}"
        members = [(f"{key}.json", text), *((f"{key}.{each.suffix}", each.data) for each in media)]
        is_tar = media or self._kind == "webdataset"
        self._open.write(tar_of(members) if is_tar else text)
        self.samples += 1

    def close(self) -> None:
        """End the last shard."""
        if self._open is not None:
            self._open.close()
            self._open = None


class _Tar:
    def __init__(self, path: Path):
        self._file: BinaryIO = path.open("wb")

    def write(self, sample: bytes) -> None:
        self._file.write(sample)

    def close(self) -> None:
        self._file.write(END_OF_TAR)
        self._file.close()


def _array_record(path: Path) -> Any:
    try:
        from array_record.python.array_record_module import ArrayRecordWriter  # only here: there is none for Windows
    except ImportError as error:
        raise DataError(
            "ArrayRecord needs array_record; install it (pip install array_record), or write webdataset"
        ) from error
    return ArrayRecordWriter(str(path), "group_size:1")  # each record by itself, for reading at random
