"""The folder of a run's checkpoints: which names in it are checkpoints, and how one is made.

    7/                    the checkpoint of step 7; it appears by one rename
    8.partial/            one that is being written, or that a killed job left behind; it does not count
        checkpoint/         what becomes "8"
        written/2           the report of process 2: `DONE`, or what went wrong
        checksums/2         the checksums of what process 2 wrote
    3.deleted/            one that is being deleted
    6.damaged/            one that was found damaged, kept to be looked at; it does not count

Only process 0 makes, renames and deletes folders.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from hetjax.checkpoint.checksums import CHECKSUMS_FILE, Checksum, checksums_of, files_in, from_text, to_text
from hetjax.checkpoint.description import DESCRIPTION_FILE

DONE = "done"

_LEFTOVER = re.compile(r"(0|[1-9]\d*)\.(partial|deleted)")
_STEP = re.compile(r"0|[1-9]\d*")


class CheckpointFolder:
    """The checkpoints in a directory, by step. Raises OSError where the file system does."""

    def __init__(self, directory: Path):
        self.directory = directory

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, in order."""
        return sorted(int(name) for name in self._names() if _STEP.fullmatch(name) and self.is_complete(int(name)))

    def incomplete(self) -> list[str]:
        """Return the names of folders that are called like checkpoints and are none."""
        return sorted(name for name in self._names() if _STEP.fullmatch(name) and not self.is_complete(int(name)))

    def lost(self) -> list[str]:
        """Return the names of folders that were checkpoints, and were set aside or lack their description."""
        return [*self.incomplete(), *sorted(name for name in self._names() if ".damaged" in name)]

    def path(self, step: int) -> Path:
        """Return where a complete checkpoint is."""
        return self.directory / str(step)

    def item(self, step: int, name: str) -> Path:
        """Return where an item of a complete checkpoint is."""
        return self.path(step) / name

    def partial_item(self, step: int, name: str) -> Path:
        """Return where to write an item of a checkpoint that was begun."""
        return self._partial(step) / "checkpoint" / name

    def begin(self, step: int) -> None:
        """Remove what killed jobs left, and make the partial folder of a new checkpoint."""
        for name in self._names():
            if _LEFTOVER.fullmatch(name):
                shutil.rmtree(self.directory / name)
        if str(step) in self.incomplete():
            self.set_aside(step)
        (self._partial(step) / "checkpoint").mkdir(parents=True)
        (self._partial(step) / "checksums").mkdir()
        (self._partial(step) / "written").mkdir()

    def has_begun(self, step: int) -> bool:
        """Return whether `begin` has made the folder of a checkpoint."""
        return (self._partial(step) / "written").is_dir()

    def report(self, step: int, process: int, outcome: str) -> None:
        """Report the outcome of a process, `DONE` or an error, to the other processes."""
        (self._partial(step) / "written" / str(process)).write_text(outcome)

    def reports(self, step: int, *, beside: Collection[int] = ()) -> dict[int, str]:
        """Return the outcomes that processes, `beside` some, have reported so far.

        There are none when the checkpoint is complete, or gone.
        """
        try:
            reported = {int(name) for name in os.listdir(self._partial(step) / "written")}
        except FileNotFoundError:
            return {}
        outcomes = {process: self.report_of(step, process) for process in reported.difference(beside)}
        return {process: outcome for process, outcome in outcomes.items() if outcome is not None}

    def report_of(self, step: int, process: int) -> str | None:
        """Return the outcome that one process has reported, or None."""
        try:
            outcome = (self._partial(step) / "written" / str(process)).read_text()
        except FileNotFoundError:
            return None
        # A report is empty for the moment between its making and its writing.
        return outcome or None

    def sum_own_files(self, step: int, process: int) -> None:
        """Write down the checksums of the files that a process wrote into the items of a checkpoint that was begun."""
        root = self._partial(step) / "checkpoint"
        own = [str(path.relative_to(root)) for path in root.glob(f"*/ocdbt.process_{process}/**/*") if path.is_file()]
        (self._partial(step) / "checksums" / str(process)).write_text(to_text(checksums_of(root, own)))

    def commit(self, step: int, texts: Mapping[str, str]) -> None:
        """Turn the partial folder, whose items are all written, into the checkpoint of its step.

        Adds files of text, by their path in it, and the checksums of all its files; what no process has summed is read
        here. All of that is on the disk when the checkpoint appears, and so is its name when this returns.
        """
        root = self._partial(step) / "checkpoint"
        for name, text in texts.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(text)
        sums: dict[str, Checksum] = {}
        for summed in (self._partial(step) / "checksums").iterdir():
            sums |= from_text(summed.read_text())
        sums |= checksums_of(root, [file for file in files_in(root) if file not in sums])
        (root / CHECKSUMS_FILE).write_text(to_text(sums))
        for name in (*texts, CHECKSUMS_FILE):
            _flush(root / name)
            _flush((root / name).parent)
        os.rename(root, self.path(step))
        _flush(self.directory)
        shutil.rmtree(self._partial(step))

    def is_complete(self, step: int) -> bool:
        """Return whether there is a checkpoint of a step."""
        return (self.path(step) / DESCRIPTION_FILE).is_file()

    def set_aside(self, step: int) -> Path:
        """Rename the folder of a step, so that it does not count any more, and return its new path."""
        names = set(self._names())
        count = next(i for i in range(len(names) + 1) if _aside(step, i) not in names)
        path = self.directory / _aside(step, count)
        os.rename(self.path(step), path)
        return path

    def keep_newest(self, count: int, *, beside: int | None = None) -> None:
        """Delete all checkpoints but the newest, and the one of a step `beside` these."""
        for step in self.steps()[:-count]:
            if step == beside:
                continue
            # Renamed first, so that one which is deleted in part does not count.
            doomed = self.directory / f"{step}.deleted"
            os.rename(self.path(step), doomed)
            shutil.rmtree(doomed)

    def _partial(self, step: int) -> Path:
        return self.directory / f"{step}.partial"

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.directory)
        except FileNotFoundError:
            return []


def _aside(step: int, count: int) -> str:
    return f"{step}.damaged" + (f".{count}" if count else "")


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
