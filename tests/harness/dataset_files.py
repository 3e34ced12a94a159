"""The same conversations written in every format of datasets."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Record = Mapping[str, object]


def write_jsonl(path: Path, records: Sequence[Record]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_json(path: Path, records: Sequence[Record]) -> Path:
    path.write_text(json.dumps(list(records), indent=1, ensure_ascii=False))
    return path


def write_parquet(path: Path, records: Sequence[Record], rows_a_group: int = 3) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), path, row_group_size=rows_a_group)
    return path


def write_array_record(path: Path, records: Sequence[bytes]) -> Path:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.write_bytes(tar_of(members))
    return path


def tar_of(members: Sequence[tuple[str, bytes]]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return target.getvalue()


def as_json_lines(records: Sequence[Record]) -> list[bytes]:
    return [json.dumps(record).encode() for record in records]


WRITERS: dict[str, Callable[[Path, Sequence[Record]], Path]] = {
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".parquet": write_parquet,
    ".arrayrecord": lambda path, records: write_array_record(path, as_json_lines(records)),
    ".tar": lambda path, records: write_tar(
        path, [(f"{i:04}.json", text) for i, text in enumerate(as_json_lines(records))]
    ),
}
"""What writes records without media, by suffix."""
