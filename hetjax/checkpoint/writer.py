"""One checkpoint on its way from the devices to the disk.

Every process writes what it holds and reports it in the folder. Process 0 waits for all reports, puts
the items together and renames the folder, which is when the checkpoint counts; the others wait for that.
After `begin_together` the processes meet in the file system alone: the thread that writes runs no
program of several processes, whose order it would disturb.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
from orbax.checkpoint.multihost import sync_global_processes

from hetjax.checkpoint.folder import DONE, CheckpointFolder
from hetjax.checkpoint.items import Item
from hetjax.errors import CheckpointError

TIME_LIMIT_S = 600.0
"""How long a process waits for others after its own part is written."""

VISIBLE_S = 60.0
"""How long a folder that process 0 made may take to show on another process's machine."""

_POLL_S = 0.05
_LONGEST_POLL_S = 1.0


class OtherProcessFailed(Exception):
    """Another process could not write its part, or has not done so for too long."""


def reason(error: BaseException) -> str:
    """An error in one line."""
    text = next(iter(str(error).splitlines()), "no reason given")
    return text if isinstance(error, OtherProcessFailed) else f"{type(error).__name__}: {text}"


class Write:
    """One checkpoint that this process writes its part of.

    Args:
        folder: the folder of checkpoints.
        step: which one it becomes.
        keep: how many to keep once it is complete.
        description: its JSON item.
        writers: the processes that write an item, for every item of the checkpoint.
        trees: this process's arrays by item.

    Every process makes one at the same time. Raises whatever Orbax and the file system raise.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        step: int,
        *,
        keep: int,
        description: Mapping[str, Any],
        writers: Mapping[str, Collection[int]],
        trees: Mapping[str, Any],
    ):
        self.step = step
        self._folder, self._keep, self._description = folder, keep, description
        self._trees = dict(trees)
        self._writers = sorted({process for processes in writers.values() for process in processes})
        self._done: set[int] = set()
        self._error: BaseException | None = None
        self._copied = threading.Event()
        _begin_together(folder, step)
        self._items = {item: Item(folder.partial_item(step, item), who) for item, who in writers.items()}
        self._thread = threading.Thread(target=self._run, name=f"checkpoint of step {step}")
        self._thread.start()
        self._copied.wait()

    def wait(self) -> None:
        """Until the checkpoint is complete. Raises what went wrong, here or in another process."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        if jax.process_index() != 0:
            self._await("process 0 to complete it", self._is_complete)

    def _run(self) -> None:
        try:
            self._write()
            if jax.process_index() == 0:
                self._complete()
        except BaseException as error:
            self._error = error
            self._report(reason(error))

    def _write(self) -> None:
        writing = []
        try:
            while self._trees:
                item = next(iter(self._trees))
                # Let go at once: what is left to write is on the host.
                writing.extend(self._items[item].copy(self._trees.pop(item)))
        finally:
            self._copied.set()
            _finish(writing)
        self._folder.report(self.step, jax.process_index(), DONE)

    def _complete(self) -> None:
        self._await("all processes to write", self._all_have_written)
        for item in self._items.values():
            item.merge()
        path = self._folder.partial_item(self.step, "description") / "metadata"
        path.parent.mkdir()
        path.write_text(json.dumps(self._description))
        self._folder.commit(self.step)
        self._folder.keep_newest(self._keep)

    def _all_have_written(self) -> bool:
        """Asked in process 0. Raises OtherProcessFailed."""
        for process, outcome in self._folder.reports(self.step, beside=self._done).items():
            _check_report(process, outcome)
            self._done.add(process)
        return self._done.issuperset(self._writers)

    def _is_complete(self) -> bool:
        """Asked in the other processes, which read no report but that of process 0: it fails, too, when one has.

        Raises OtherProcessFailed.
        """
        if self._folder.is_complete(self.step):
            return True
        _check_report(0, self._folder.report_of(self.step, 0) or DONE)
        return False

    def _await(self, what: str, done: Callable[[], bool]) -> None:
        end, poll = time.monotonic() + TIME_LIMIT_S, _POLL_S
        while not done():
            if time.monotonic() > end:
                reports = self._folder.reports(self.step)
                missing = [str(process) for process in self._writers if reports.get(process) != DONE]
                raise OtherProcessFailed(
                    f"waited {TIME_LIMIT_S:g} s for {what}; processes that have not written: "
                    f"{', '.join(missing) or 'none'}"
                )
            time.sleep(poll)
            poll = min(1.5 * poll, _LONGEST_POLL_S)

    def _report(self, outcome: str) -> None:
        try:
            self._folder.report(self.step, jax.process_index(), outcome)
        except OSError as error:
            # What stopped the writing may stop this too; the others then see that the report is missing.
            self._error.add_note(f"could not tell the other processes: {error}")


def _check_report(process: int, outcome: str) -> None:
    if outcome != DONE:
        # Process 0 repeats what another one told.
        told = outcome if outcome.startswith("process ") else f"process {process} failed: {outcome}"
        raise OtherProcessFailed(told)


def _begin_together(folder: CheckpointFolder, step: int) -> None:
    """Make the partial folder, when no process is concerned with one before it any more."""
    _meet(f"hetjax: all have come to save step {step}")
    try:
        if jax.process_index() == 0:
            folder.begin(step)
    finally:
        _meet(f"hetjax: step {step} can be saved")
    end = time.monotonic() + VISIBLE_S
    while not folder.has_begun(step):
        # A network file system may show a new folder late.
        if time.monotonic() > end:
            raise CheckpointError(
                f"process {jax.process_index()} does not see what process 0 made in {folder.directory}; "
                "give a run_dir on a file system that all processes share"
            )
        time.sleep(_POLL_S)


def _meet(name: str) -> None:
    """Wait for all processes, through the coordination service rather than the devices."""
    sync_global_processes(name, timeout=int(TIME_LIMIT_S), processes=set(range(jax.process_count())))


def _finish(writing: Sequence[Any]) -> None:
    """Until all is on the disk; raises the first error, when nothing is being written any more."""
    errors = []
    for future in writing:
        try:
            future.result()
        except BaseException as error:
            errors.append(error)
    if errors:
        raise errors[0]
