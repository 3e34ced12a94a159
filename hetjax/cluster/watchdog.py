"""The watch of the processes of a job over each other: one that dies or hangs ends them all, by name."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from hetjax.cluster.exit_codes import end_process
from hetjax.cluster.peers import RESUME, Status
from hetjax.cluster.watchdog_client import Member
from hetjax.cluster.watchdog_server import Hub
from hetjax.errors import ClusterError

try:
    import resource
except ImportError:  # not on Windows, where there is no such limit
    resource = None

_watches = itertools.count()


class Notes(Protocol):
    """How process 0 tells the others where it listens: `hetjax.cluster.key_value_store`."""

    def put(self, key: str, value: str) -> None: ...
    def get(self, key: str, timeout: float) -> str: ...
    def coordinator_host(self) -> str: ...


class Watch:
    """Reports what this process does to process 0, which ends the whole job when one dies or hangs.

        watch = Watch.start(process, processes, timeout=60, notes=store)
        with watch.unlimited("compiling"):
            ...
        watch.at((step, action), "step 12, F3 of llm")
        watch.close()

    A process ends itself with one line on stderr and the code `PEER_LOST` when another one
    - closes its connection without a goodbye: it died (known at once);
    - sends no sign of life for `timeout` seconds: it is stopped, or its machine or network is down;
    - is furthest behind of all, made no progress for `timeout` seconds, and is not in an `unlimited` block;
    - says goodbye with a reason: it ends with an error of its own.
    Until its first `at`, a process counts as in an `unlimited` block.
    """

    def __init__(self) -> None:
        self._at: tuple[tuple[int, ...], str] | None = None
        self._unlimited: list[str] = []
        self._keeper: Hub | Member | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def start(cls, process: int, processes: int, *, timeout: float, notes: Notes, join_timeout: float = 60) -> Watch:
        """Begin to watch; in a run of one process there is nothing to do. Every process of the job must call it.

        Args:
            process: Which process this is.
            processes: How many there are.
            timeout: Seconds without a sign of life, or without progress, that end the job.
            notes: How the processes find each other.
            join_timeout: Seconds that the processes have to come here.

        Raises ClusterError when process 0 cannot be found or reached.
        """
        watch = cls()
        if processes > 1:
            key = f"hetjax/watch/{next(_watches)}"
            open_keeper = watch._open_hub if process == 0 else watch._open_member
            watch._keeper = open_keeper(process, processes, timeout, join_timeout, key, notes)
            watch._thread = threading.Thread(target=watch._keep, name="hetjax-watch", daemon=True)
            watch._thread.start()
        return watch

    def at(self, position: tuple[int, ...] | int, doing: str) -> None:
        """Note where this process is in the one total order of the job, before it goes there; costs no message."""
        self._at = (position if isinstance(position, tuple) else (position,), doing)

    @contextlib.contextmanager
    def unlimited(self, doing: str) -> Iterator[None]:
        """Inside the block no progress is expected: compiling, writing a checkpoint."""
        self._unlimited.append(doing)
        try:
            yield
        finally:
            self._unlimited.pop()

    def close(self, reason: str | None = None, *, wait_for_news: float = 0) -> None:
        """Leave. Process 0 stays until all others have left, unless there is a reason.

        Args:
            reason: The error that this process ends with; all others print it and end too.
            wait_for_news: Seconds to wait before that. An error out of a collective mostly is the trace of a peer that
                died, and the news of that death, which ends this process, says more.
        """
        if self._keeper is None:
            return
        time.sleep(wait_for_news)
        with self.unlimited("waiting for the other processes to end"):
            self._keeper.close(reason)
            self._thread.join()
        self._keeper = None

    def _keep(self) -> None:
        """The thread. Without it nobody would know of a lost peer, so its own failure ends the job, too."""
        try:
            self._keeper.run()
        except Exception as error:
            end_process(f"the watch over the other processes failed: {type(error).__name__}: {error}; {RESUME}")

    def _status(self) -> Status:
        position, doing = self._at or ((), "starting")
        # A copy, since the main thread may leave a block meanwhile.
        blocks = list(self._unlimited)
        return Status(
            position=position, doing=blocks[-1] if blocks else doing, unlimited=bool(blocks) or self._at is None
        )

    def _open_hub(
        self, process: int, processes: int, timeout: float, join_timeout: float, key: str, notes: Notes
    ) -> Hub:
        _allow_files(processes)
        listener = _listen(notes.coordinator_host())
        token = secrets.token_hex(8)
        notes.put(key, f"{listener.getsockname()[1]} {token}")
        return Hub(
            listener,
            token,
            processes=processes,
            timeout=timeout,
            join_timeout=join_timeout,
            status=self._status,
            end=end_process,
        )

    def _open_member(
        self, process: int, processes: int, timeout: float, join_timeout: float, key: str, notes: Notes
    ) -> Member:
        deadline = time.monotonic() + join_timeout
        port, token = notes.get(key, join_timeout).split()
        connection = _reach(notes.coordinator_host(), int(port), deadline)
        return Member(
            connection,
            token,
            process=process,
            processes=processes,
            timeout=timeout,
            status=self._status,
            end=end_process,
        )


def _allow_files(processes: int) -> None:
    """Room for a connection to each process, where the machine's soft limit on open files is lower."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = processes + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _listen(coordinator: str) -> socket.socket:
    """A port of this machine; for other machines to reach only where the job has some."""
    if coordinator in ("localhost", "127.0.0.1"):
        return socket.create_server(("127.0.0.1", 0))
    both = socket.has_dualstack_ipv6()
    return socket.create_server(("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)


def _reach(host: str, port: int, deadline: float) -> socket.socket:
    while True:
        try:
            # Not by the name "localhost", which may mean another address than the one listened on.
            return socket.create_connection(("127.0.0.1" if host == "localhost" else host, port), timeout=5)
        except OSError as error:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"cannot reach process 0 at {host}:{port}, where it watches its peers ({error.strerror or error}); "
                    "the machines of a job must reach each other on all ports"
                ) from None
            time.sleep(0.1)
