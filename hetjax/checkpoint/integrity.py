"""Compares the files of a checkpoint with their checksums, shared out over the processes of a job."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from hetjax.checkpoint.checksums import CHECKSUMS_FILE, blocks_of, find_damage, from_text, share_of
from hetjax.checkpoint.description import DESCRIPTION_FILE
from hetjax.cluster import key_value_store as store

_SMALL = 1 << 20
"""Bytes of a file that is checked before anything is read: metadata, by which arrays are found."""


class Integrity:
    """The check of a checkpoint's files by this process: its share of them, and the description.

    Small files are compared at once. The large ones are compared in the background, while arrays are read, which costs
    little beside their decompression.

    Args:
        folder: the folder of the checkpoint.
        wanted: which files count, by their path inside the folder; without, all.

    Attributes:
        is_known: whether the checkpoint has checksums; one of an earlier version has none, and nothing is compared.
        files: how many files it compares in all processes together.
        bytes: their size.
    """

    def __init__(self, folder: Path, wanted: Callable[[str], bool] = lambda file: True):
        self._folder = folder
        self._first: str | None = None
        self._rest: Future[str | None] | None = None
        self.is_known, blocks = True, []
        try:
            blocks = [block for block in blocks_of(from_text(_text(folder))) if wanted(block.file)]
        except FileNotFoundError:
            self.is_known = False
        except (OSError, ValueError) as error:
            self._first = f"{CHECKSUMS_FILE} cannot be read: {error}"
        self.files, self.bytes = (
            len({block.file for block in blocks}),
            sum(block.stop - block.start for block in blocks),
        )
        mine = share_of(blocks, store.process(), store.processes())
        mine += [block for block in blocks if block.file == DESCRIPTION_FILE and block not in mine]
        self._small = [block for block in mine if block.size <= _SMALL]
        self._large = [block for block in mine if block.size > _SMALL]

    def start(self) -> str | None:
        """Compare the small files, and begin with the large ones; return what is wrong with the small ones, or None."""
        damage = self._first or find_damage(self._folder, self._small)
        if damage is None and self._large:
            thread = ThreadPoolExecutor(1, "integrity")
            self._rest = thread.submit(find_damage, self._folder, self._large)
            thread.shutdown(wait=False)
        return damage

    def finish(self) -> str | None:
        """Return what is wrong with the large files, or None."""
        return None if self._rest is None else self._rest.result()


def damage_of(folder: Path, wanted: Callable[[str], bool] = lambda file: True) -> str | None:
    """Return what is wrong with this process's share of a checkpoint's files, or None."""
    check = Integrity(folder, wanted)
    return check.start() or check.finish()


def _text(folder: Path) -> str:
    return (folder / CHECKSUMS_FILE).read_text()
