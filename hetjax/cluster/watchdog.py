"""The watchdog of a job: when one of its processes dies or hangs, all others end and name it."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from hetjax.cluster.abort_delay import delay_abort
from hetjax.cluster.exit_codes import end_process
from hetjax.cluster.greeting import answer, new_secret
from hetjax.cluster.messages import Status
from hetjax.cluster.own_watch import OwnWatch
from hetjax.cluster.peers import RESUME
from hetjax.cluster.watchdog_client import WatchdogClient
from hetjax.cluster.watchdog_server import GREETING_SECONDS, WatchdogServer
from hetjax.errors import ClusterError

try:
    import resource
except ImportError:  # not on Windows, where there is no such limit
    resource = None

DEVICES = "waiting for the devices"
"""What a process does that waits for its own programs."""

# Every process starts its watchdogs in the same order, so the count is the same in all.
_watchdogs = itertools.count()


class KeyValueStore(Protocol):
    """The store by which process 0 publishes the address that it listens on: `hetjax.cluster.key_value_store`."""

    def put(self, key: str, value: str) -> None:
        """Store a value."""

    def get(self, key: str, timeout: float) -> str:
        """Return a value, waited for up to `timeout` seconds. Raises ClusterError."""

    def coordinator_host(self) -> str:
        """Return the host of process 0, as the other processes reach it."""


class Watchdog:
    """Reports what this process is doing to process 0, which ends the whole job when one dies or hangs.

        watchdog = Watchdog.start(process, processes, timeout=60, store=key_value_store)
        with watchdog.unlimited("compiling"):
            ...
        watchdog.set_position((step, action), "step 12, F3 of llm")
        watchdog.close()

    A process ends itself with one line on stderr and the code `PEER_LOST` when another one
    - closes its connection without a goodbye: it died (known at once);
    - sends no heartbeat for `timeout` seconds: it is stopped, or its machine or network is down;
    - is furthest behind of all, made no progress for `timeout` seconds, and is not in an `unlimited` block;
    - says goodbye with a reason: it ends with an error of its own.
    Until its first `set_position`, a process counts as in an `unlimited` block.
    """

    def __init__(self) -> None:
        self._at: tuple[tuple[int, ...], str] | None = None
        self._unlimited: list[str] = []
        self._side: WatchdogServer | WatchdogClient | OwnWatch | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def start(
        cls,
        process: int,
        processes: int,
        *,
        timeout: float,
        store: KeyValueStore,
        join_timeout: float = 60,
        own_timeout: float | None = None,
    ) -> Watchdog:
        """Begin to watch. Every process of the job must call it.

        Args:
            process: Which process this is.
            processes: How many there are.
            timeout: Seconds without a heartbeat, or without progress, that end the job.
            store: Where the processes find the address of process 0.
            join_timeout: Seconds that the processes have to call this.
            own_timeout: In a run of one process: seconds without progress that end it; None to watch nothing then.

        Raises ClusterError when process 0 cannot be found or reached.
        """
        watchdog = cls()
        if processes == 1 and own_timeout is not None:
            watchdog._side = OwnWatch(watchdog._own_status, timeout=own_timeout, end=end_process)
            watchdog._thread = threading.Thread(target=watchdog._run, name="hetjax-watchdog", daemon=True)
            watchdog._thread.start()
        if processes > 1:
            key = f"hetjax/watchdog/{next(_watchdogs)}"
            if process == 0:
                watchdog._side = watchdog._open_server(processes, timeout, join_timeout, key, store)
            else:
                watchdog._side = watchdog._open_client(process, processes, timeout, join_timeout, key, store)
            watchdog._thread = threading.Thread(target=watchdog._run, name="hetjax-watchdog", daemon=True)
            watchdog._thread.start()
            delay_abort()
        return watchdog

    def set_position(self, position: tuple[int, ...], doing: str) -> None:
        """Set where this process is in the one total order of the job, before it goes there; sends no message."""
        self._at = (position, doing)

    @contextlib.contextmanager
    def unlimited(self, doing: str) -> Iterator[None]:
        """Inside the block no progress is expected: compiling, writing a checkpoint."""
        self._unlimited.append(doing)
        try:
            yield
        finally:
            self._unlimited.pop()

    def close(self, reason: str | None = None, *, wait_for_verdict: float = 0) -> None:
        """Leave. Process 0 stays until all others have left, unless there is a reason.

        Args:
            reason: The error that this process ends with; all others print it and end too.
            wait_for_verdict: Seconds to wait before that. An error out of a collective mostly follows from a peer that
                died, and the message about that death, which ends this process, says more.
        """
        if self._side is None:
            return
        time.sleep(wait_for_verdict)
        with self.unlimited("waiting for the other processes to end"):
            self._side.close(reason)
            self._thread.join()
        self._side = None

    def _run(self) -> None:
        """The thread. Without it nobody would know of a lost peer, so its own failure ends the job, too."""
        try:
            self._side.run()
        except Exception as error:
            end_process(f"the watchdog of the other processes failed: {type(error).__name__}: {error}; {RESUME}")

    def _status(self) -> Status:
        # Both read once, since the main thread may go on meanwhile.
        at, blocks = self._at, list(self._unlimited)
        position, doing = at or ((), "starting")
        return Status(position=position, doing=blocks[-1] if blocks else doing, unlimited=bool(blocks) or at is None)

    def _own_status(self) -> Status:
        """What a process without peers is doing: where others would wait for its devices as long as it lives, nobody
        else can tell that these hang."""
        at, blocks = self._at, list(self._unlimited)
        position, doing = at or ((), "starting")
        if blocks:
            doing = f"{doing}, {blocks[-1]}"
        return Status(position=position, doing=doing, unlimited=at is None or any(each != DEVICES for each in blocks))

    def _open_server(
        self, processes: int, timeout: float, join_timeout: float, key: str, store: KeyValueStore
    ) -> WatchdogServer:
        _allow_files(processes)
        listener = _listen(store.coordinator_host())
        secret = new_secret()
        store.put(key, f"{listener.getsockname()[1]} {secret}")
        return WatchdogServer(
            listener,
            secret,
            processes=processes,
            timeout=timeout,
            join_timeout=join_timeout,
            status=self._status,
            end=end_process,
        )

    def _open_client(
        self, process: int, processes: int, timeout: float, join_timeout: float, key: str, store: KeyValueStore
    ) -> WatchdogClient:
        deadline = time.monotonic() + join_timeout
        port, secret = store.get(key, join_timeout).split()
        connection = _reach(store.coordinator_host(), int(port), secret, deadline)
        return WatchdogClient(
            connection,
            process=process,
            processes=processes,
            timeout=timeout,
            status=self._status,
            end=end_process,
        )


def _allow_files(processes: int) -> None:
    """Allow a connection to each process, where the machine's soft limit on open files is lower."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = processes + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _listen(coordinator: str) -> socket.socket:
    """Listen on a free port of the address by which the others know this machine."""
    if coordinator in ("localhost", "127.0.0.1"):
        return socket.create_server(("127.0.0.1", 0))
    with contextlib.suppress(OSError):
        [(family, *_, address), *_] = socket.getaddrinfo(coordinator, 0, type=socket.SOCK_STREAM)
        # /etc/hosts may give a machine's own name an address that only itself reaches.
        if not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
            return socket.create_server((address[0], 0), family=family)
    # The name stands for no address of this machine that others reach, such as that of a service in front of it.
    both = socket.has_dualstack_ipv6()
    return socket.create_server(("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)


def _reach(host: str, port: int, secret: str, deadline: float) -> socket.socket:
    """Connect to process 0 and greet it, trying again until the deadline. Raises ClusterError."""
    while True:
        try:
            # Not by the name "localhost", which may mean another address than the one listened on.
            connection = socket.create_connection(("127.0.0.1" if host == "localhost" else host, port), timeout=5)
            try:
                answer(connection, secret, GREETING_SECONDS)
            except OSError:
                connection.close()
                raise
            return connection
        except OSError as error:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"cannot reach process 0 at {host}:{port}, where it watches its peers ({error.strerror or error}); "
                    "the machines of a job must reach each other on all ports"
                ) from None
            time.sleep(0.1)
