"""Write a folder of files that appears whole or not at all."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from hetjax.errors import DataError


def write_whole(folder: str | os.PathLike[str], write: Callable[[Path], None], *, what: str) -> Path:
    """Let `write` fill a new folder, give it its name when it is whole, and return its path.

    A folder that holds these very files already is left as it is. `what` ("digits") names the files in errors.

    Raises:
        DataError: `folder` holds other files, or cannot be written (a full disk, no permission).
    """
    folder = Path(folder).absolute()
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        _publish(partial, folder, what)
    except OSError as error:
        raise DataError(
            f"{what} cannot be written to '{folder}': {error}; free the disk or choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _publish(partial: Path, folder: Path, what: str) -> None:
    """Give the finished folder its name in one step."""
    try:
        partial.rename(folder)  # also takes the place of an empty folder
    except OSError:
        if not folder.exists():
            raise
        if not folder.is_dir() or not _same_files(partial, folder):
            raise DataError(
                f"'{folder}' holds something other than these {what}; remove it or choose another folder"
            ) from None


def _same_files(new: Path, old: Path) -> bool:
    names = [str(path.relative_to(new)) for path in new.rglob("*") if path.is_file()]
    return filecmp.cmpfiles(new, old, names, shallow=False)[0] == names
