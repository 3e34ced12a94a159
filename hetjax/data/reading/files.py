"""Find the files of a dataset: a file, a folder or a glob."""

from __future__ import annotations

import glob
import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from hetjax.errors import DataError

# What tools write beside a dataset; no samples.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def data_files(path: str, suffixes: Collection[str], split: str | None = None) -> list[Path]:
    """Return the files of a dataset in the order of their names.

    Args:
        path: A file; a folder, whose files with one of `suffixes` are taken, in folders within it, too; or a glob.
        suffixes: Of the formats that can be read.
        split: Of a folder or a glob only the files of this name ("train": `train.jsonl`, `data/train/a.jsonl`,
            `train-00000-of-00002.parquet`).

    Raises:
        DataError: there is none, or the files of a folder are of several formats.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        found = [file for file in place.rglob("*") if file.is_file() and suffix_of(file, suffixes)]
        files = sorted(file for file in found if file.name not in _DESCRIPTIONS and not _hidden(file, place))
        if not files:
            raise DataError(f"dataset '{path}' is a folder without data; put files of {_listed(suffixes)} into it")
    elif glob.has_magic(path):
        files = sorted(Path(file) for file in glob.glob(str(place), recursive=True) if Path(file).is_file())
        if not files:
            raise DataError(f"dataset '{path}' matches no file; give a glob that does (** goes into folders)")
    else:
        raise DataError(f"dataset '{path}' cannot be read: No such file or directory; give a file, a folder or a glob")
    if split is not None:
        files = _of_split(files, place, split, path)
    if place.is_dir():
        _check_one_format(files, suffixes, path)
    return files


def suffix_of(path: Path, suffixes: Collection[str]) -> str | None:
    """Return which of `suffixes` a file has; None where none."""
    return max((each for each in suffixes if path.name.lower().endswith(each)), key=len, default=None)


def _of_split(files: list[Path], place: Path, split: str, path: str) -> list[Path]:
    named = re.compile(rf"{re.escape(split)}([-_.]|$)", re.IGNORECASE)

    def parts(file: Path) -> tuple[str, ...]:
        return file.relative_to(place).parts if place.is_dir() else file.parts

    chosen = [file for file in files if any(named.match(part) for part in parts(file))]
    if not chosen:
        names = ", ".join(file.name for file in files[:5])
        raise DataError(f"dataset '{path}' has no files of the split '{split}'; its files: {names}")
    return chosen


def _check_one_format(files: list[Path], suffixes: Collection[str], path: str) -> None:
    by_format = defaultdict(list)
    for file in files:
        by_format[suffix_of(file, suffixes)].append(file)
    if len(by_format) > 1:
        kinds = ", ".join(f"{len(each)} of {suffix}" for suffix, each in sorted(by_format.items()))
        raise DataError(
            f"dataset '{path}' has files of several formats: {kinds}; name some by a glob, as '{path}/*.jsonl'"
        )


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def _listed(suffixes: Collection[str]) -> str:
    return ", ".join(sorted(suffixes))
