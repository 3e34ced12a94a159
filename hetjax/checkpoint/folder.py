"""The folder of a run's checkpoints: which names in it are checkpoints, and how one is made.

    7/                    the checkpoint of step 7; it appears by one rename
    8.partial/            one that is being written, or that a killed job left behind; it does not count
        checkpoint/         what becomes "8"
        written/2           the report of process 2: `DONE`, or what went wrong
    3.deleted/            one that is being deleted

Only process 0 makes, renames and deletes folders.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

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

    def item(self, step: int, name: str) -> Path:
        """Return where an item of a complete checkpoint is."""
        return self.directory / str(step) / name

    def partial_item(self, step: int, name: str) -> Path:
        """Return where to write an item of a checkpoint that was begun."""
        return self._partial(step) / "checkpoint" / name

    def begin(self, step: int) -> None:
        """Remove what killed jobs left, and make the partial folder of a new checkpoint."""
        for name in self._names():
            if _LEFTOVER.fullmatch(name):
                shutil.rmtree(self.directory / name)
        (self._partial(step) / "checkpoint").mkdir(parents=True)
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

    def commit(self, step: int) -> None:
        """Turn the partial folder, whose items are all written, into the checkpoint of its step."""
        os.rename(self._partial(step) / "checkpoint", self.directory / str(step))
        shutil.rmtree(self._partial(step))

    def is_complete(self, step: int) -> bool:
        """Return whether there is a checkpoint of a step."""
        return (self.directory / str(step)).is_dir()

    def keep_newest(self, count: int) -> None:
        """Delete all checkpoints but the newest."""
        for step in self.steps()[:-count]:
            # Renamed first, so that one which is deleted in part does not count.
            doomed = self.directory / f"{step}.deleted"
            os.rename(self.directory / str(step), doomed)
            shutil.rmtree(doomed)

    def _partial(self, step: int) -> Path:
        return self.directory / f"{step}.partial"

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.directory)
        except FileNotFoundError:
            return []
