"""A training run as a job of one process or of many."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager

from hetjax.cluster import key_value_store as store
from hetjax.cluster.agree import check_agreement
from hetjax.cluster.agreed_stop import AgreedStop
from hetjax.cluster.connect import connect, disconnect
from hetjax.cluster.environment import find_environment
from hetjax.cluster.watchdog import Watch
from hetjax.error_report import USER_ERROR_CODE, is_user_error, message_of, report_error
from hetjax.schedule.actions import Action

# Seconds that the slowest process may take longer than the fastest to prepare its data, or to compile.
PATIENCE = 3600.0
# Seconds in which the news of a dead peer arrives, which explains an error out of a collective.
NEWS = 3.0


@dataclasses.dataclass(frozen=True)
class Job:
    """This process's place in the job.

    Attributes:
        process: which process it is, from 0; process 0 prints, logs and draws for all.
        processes: how many there are.
    """

    process: int
    processes: int
    _watch: Watch

    @property
    def speaks(self) -> bool:
        """Whether this is the process that prints, logs and draws."""
        return self.process == 0

    def agree(self, what: str, value: str = "") -> None:
        """Go on when all processes have come here with the same value. Raises ClusterError if one has another."""
        with self.unlimited(f"comparing the {what}"):
            check_agreement(what, value, timeout=PATIENCE)

    def unlimited(self, doing: str) -> AbstractContextManager[None]:
        """A block that may take any time: the peers wait as long as this process lives."""
        return self._watch.unlimited(doing)

    def at(self, step: int, position: int, doing: str) -> None:
        """Note what comes next, in the one order of all processes; it may take the peer timeout at most."""
        self._watch.at((step, position), f"step {step}, {doing}")

    def before_action(self, step: int, position: int, action: Action) -> None:
        """Note an action of the schedule."""
        self._watch.at((step, position), f"step {step}, {action} of {action.stage}")

    def stop(self) -> AgreedStop:
        """A block in which a signal stops all processes after the same step."""
        return AgreedStop()


@contextlib.contextmanager
def join_job(*, peer_timeout: float, join_timeout: float) -> Iterator[Job]:
    """Take this process's place in the job that its environment tells of. Must come before JAX is first used.

    A process of several that fails tells the others, then its user, and ends at once: an orderly exit would
    wait for peers that may wait for this one.
    """
    environment = find_environment(os.environ)
    if environment is None:
        yield Job(0, 1, Watch.start(0, 1, timeout=peer_timeout, notes=store))
        return
    watch = None
    try:
        connect(environment, peer_timeout=peer_timeout, join_timeout=join_timeout)
        # All are connected now: one that does not come to the watch has died on the way.
        watch = Watch.start(
            environment.process, environment.processes, timeout=peer_timeout, notes=store, join_timeout=peer_timeout
        )
        try:
            yield Job(environment.process, environment.processes, watch)
        except SystemExit:
            # A stop that all processes agreed on.
            _leave(watch)
            raise
        _leave(watch)
    except SystemExit:
        raise
    except BaseException as error:
        _fail(error, watch)


def _leave(watch: Watch) -> None:
    with watch.unlimited("leaving"):
        disconnect()
    watch.close()


def _fail(error: BaseException, watch: Watch | None) -> None:
    mended = is_user_error(error)
    reason = message_of(error) if mended else f"{type(error).__name__}: {error}"
    if watch is not None:
        watch.close(reason, wait_for_news=0 if mended else NEWS)
    if mended:
        report_error(error)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(USER_ERROR_CODE if mended else 1)
