"""A training run as a job of one process or of many."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager

from hetjax.cluster import key_value_store
from hetjax.cluster.agree import check_agreement
from hetjax.cluster.agreed_stop import AgreedStop
from hetjax.cluster.connect import connect, disconnect
from hetjax.cluster.environment import find_environment
from hetjax.cluster.watchdog import DEVICES, Watchdog
from hetjax.error_report import exit_code_of, is_user_error, message_of, report_error
from hetjax.schedule.actions import Action

AGREE_SECONDS = 3600.0
"""Seconds that the slowest process may take longer than the fastest to prepare its data, or to compile."""
VERDICT_SECONDS = 3.0
"""Seconds in which the message about a dead peer arrives, which explains an error out of a collective."""


@dataclasses.dataclass(frozen=True)
class Job:
    """This process's place in the job.

    Attributes:
        process: Which process it is, from 0; process 0 prints, logs and draws for all.
        processes: How many there are.
    """

    process: int
    processes: int
    _watchdog: Watchdog

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints, logs and draws."""
        return self.process == 0

    def agree(self, what: str, value: str = "") -> None:
        """Wait until all processes have called this with the same value. Raises ClusterError if one has another."""
        with self.unlimited(f"comparing the {what}"):
            check_agreement(what, value, timeout=AGREE_SECONDS)

    def unlimited(self, doing: str) -> AbstractContextManager[None]:
        """A block that may take any time: the peers wait as long as this process lives."""
        return self._watchdog.unlimited(doing)

    def waiting_for_devices(self) -> AbstractContextManager[None]:
        """A block that waits for this process's programs: peers give it any time, a lone process `step_timeout`."""
        return self._watchdog.unlimited(DEVICES)

    def before_batch(self, step: int) -> None:
        """Report to the watchdog that this process waits for the batch of a step; the peer timeout runs from here."""
        self._watchdog.set_position((step, -1), f"step {step}, its batch")

    def before_action(self, step: int, position: int, action: Action) -> None:
        """Report to the watchdog that an action of the schedule comes next, the `position`-th of its step."""
        self._watchdog.set_position((step, position), f"step {step}, {action} of {action.stage}")

    def stop(self) -> AgreedStop:
        """A block in which a signal stops all processes after the same step."""
        return AgreedStop()


@contextlib.contextmanager
def join_job(*, peer_timeout: float, join_timeout: float, step_timeout: float | None = None) -> Iterator[Job]:
    """Take this process's place in the job that its environment describes. Must come before JAX is first used.

    A process of several that fails reports its error to the others, then to its user, and ends at once: an orderly
    exit would wait for peers that may wait for this one.

    Args:
        peer_timeout: Seconds without a heartbeat, or without progress, after which a process counts as lost.
        join_timeout: Seconds that the processes have to find each other.
        step_timeout: In a run of one process: seconds without progress in a step after which it ends; None for any.

    Raises ClusterError where they do not.
    """
    environment = find_environment(os.environ)
    if environment is None:
        watchdog = Watchdog.start(0, 1, timeout=peer_timeout, store=key_value_store, own_timeout=step_timeout)
        try:
            yield Job(0, 1, watchdog)
        finally:
            watchdog.close()
        return
    watchdog = None
    try:
        connect(environment, peer_timeout=peer_timeout, join_timeout=join_timeout)
        # All are connected now: one that does not come to the watchdog has died on the way.
        watchdog = Watchdog.start(
            environment.process,
            environment.processes,
            timeout=peer_timeout,
            store=key_value_store,
            join_timeout=peer_timeout,
        )
        try:
            yield Job(environment.process, environment.processes, watchdog)
        except SystemExit:
            # A stop that all processes agreed on.
            _leave(watchdog)
            raise
        _leave(watchdog)
    except SystemExit:
        raise
    except BaseException as error:
        _fail(error, watchdog)


def _leave(watchdog: Watchdog) -> None:
    with watchdog.unlimited("leaving"):
        disconnect()
    watchdog.close()


def _fail(error: BaseException, watchdog: Watchdog | None) -> None:
    """Report an error to the other processes and to the user, and end this one."""
    by_user = is_user_error(error)
    reason = message_of(error) if by_user else f"{type(error).__name__}: {error}"
    if watchdog is not None:
        watchdog.close(reason, wait_for_verdict=0 if by_user else VERDICT_SECONDS)
    if by_user:
        report_error(error)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code_of(error) if by_user else 1)
