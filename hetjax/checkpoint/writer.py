"""Writes one checkpoint from the devices to the disk.

Every process writes the shards that it holds and reports it in the folder. Process 0 waits for all reports, puts
the items together and renames the folder, which is when the checkpoint counts; the others wait for that.
After `_begin_together` the processes meet in the file system alone: the thread that writes runs no
program of several processes, whose order it would disturb.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.multihost import sync_global_processes

from hetjax.checkpoint.description import DESCRIPTION_FILE
from hetjax.checkpoint.folder import DONE, CheckpointFolder
from hetjax.checkpoint.items import ITEM_TYPES_FILE, Item, Saved, Tree, item_types
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
    """Return an error in one line."""
    text = next(iter(str(error).splitlines()), "no reason given")
    return text if isinstance(error, OtherProcessFailed) else f"{type(error).__name__}: {text}"


class Write:
    """The writing of this process's part of one checkpoint, in a thread.

    Args:
        folder: the folder of checkpoints.
        step: the step that the checkpoint is of.
        keep: how many to keep once it is complete.
        keep_beside: the step of one more that is kept; None for none.
        description: the text of its JSON item.
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
        keep_beside: int | None,
        description: str,
        writers: Mapping[str, Collection[int]],
        trees: Mapping[str, Tree[Saved]],
    ):
        self.step = step
        self._folder, self._keep, self._keep_beside, self._description = folder, keep, keep_beside, description
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
        """Wait until the checkpoint is complete. Raises what went wrong, in this process or another."""
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
        writing: list[ocp.Future] = []
        try:
            while self._trees:
                item = next(iter(self._trees))
                # Let go at once: what is left to write is on the host.
                writing.extend(self._items[item].copy(self._trees.pop(item)))
        finally:
            self._copied.set()
            _finish(writing)
        self._folder.sum_own_files(self.step, jax.process_index())
        self._folder.report(self.step, jax.process_index(), DONE)

    def _complete(self) -> None:
        self._await("all processes to write", self._all_have_written)
        for item in self._items.values():
            item.merge()
        texts = {DESCRIPTION_FILE: self._description, ITEM_TYPES_FILE: item_types(self._items)}
        self._folder.commit(self.step, texts)
        self._folder.keep_newest(self._keep, beside=self._keep_beside)

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

    def _await(self, event: str, done: Callable[[], bool]) -> None:
        end, poll = time.monotonic() + TIME_LIMIT_S, _POLL_S
        while not done():
            if time.monotonic() > end:
                reports = self._folder.reports(self.step)
                missing = [str(process) for process in self._writers if reports.get(process) != DONE]
                raise OtherProcessFailed(
                    f"waited {TIME_LIMIT_S:g} s for {event}; processes that have not written: "
                    f"{', '.join(missing) or 'none'}"
                )
            time.sleep(poll)
            poll = min(1.5 * poll, _LONGEST_POLL_S)

    def _report(self, outcome: str) -> None:
        try:
            self._folder.report(self.step, jax.process_index(), outcome)
        except OSError as error:
            # What stopped the writing may stop this too; the others then see that the report is missing.
            self._error.add_note(f"could not report it to the other processes: {error}")


def _check_report(process: int, outcome: str) -> None:
    if outcome != DONE:
        # Process 0 repeats the report of another one.
        message = outcome if outcome.startswith("process ") else f"process {process} failed: {outcome}"
        raise OtherProcessFailed(message)


def _begin_together(folder: CheckpointFolder, step: int) -> None:
    """Make the partial folder, once no process is writing the checkpoint before it."""
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


def _finish(writing: Sequence[ocp.Future]) -> None:
    """Wait until all is on the disk; raises the first error, when nothing is being written any more."""
    errors: list[BaseException] = []
    for future in writing:
        try:
            future.result()
        except BaseException as error:
            errors.append(error)
    if errors:
        raise errors[0]
