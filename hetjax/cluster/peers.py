"""What is known of each process of a job, and whom to blame when nothing moves."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Sequence
from typing import Any

RESUME = "run the same command to resume from the last checkpoint"
# Bytes; far more than any status. A stranger that finds the port must not fill the memory.
LONGEST_LINE = 1 << 20


def interval_of(timeout: float, processes: int) -> float:
    """Seconds between two signs of life: ten in the timeout at least, and no more than process 0 can read."""
    return min(timeout / 10, max(1.0, processes / 1000))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """What a process says of itself.

    Attributes:
        position: Where it is in the one total order of the job, such as (step, action); compared between processes.
        doing: The same in words.
        unlimited: What it does now may take any time, so only its death counts.
    """

    position: tuple[int, ...] = ()
    doing: str = "starting"
    unlimited: bool = True


@dataclasses.dataclass
class Peer:
    """A process as another one sees it; times are of this machine's monotonic clock, in seconds.

    Attributes:
        heard: When it last gave a sign of life.
        moved: When it last made progress, or last was seen to wait for another process.
    """

    process: int
    processes: int
    host: str
    pid: int
    heard: float
    moved: float
    status: Status = dataclasses.field(default_factory=Status)

    def update(self, status: Status, now: float) -> None:
        """Note a sign of life."""
        self.heard = now
        if status != self.status:
            self.status, self.moved = status, now

    def excuse(self, seconds: float) -> None:
        """Do not count a time in which nobody listened."""
        self.heard += seconds
        self.moved += seconds

    def __str__(self) -> str:
        return f"process {self.process} of {self.processes} (host {self.host}, pid {self.pid})"

    def blame(self, what: str) -> str:
        """The message about this process that ends the job."""
        return f"{self} {what}; last seen: {self.status.doing}; {RESUME}"


def judge(peers: Sequence[Peer], timeout: float, now: float) -> str | None:
    """The message that ends the job, if one of these processes is silent or hangs; None while all is well.

    Peers that wait for a hung one in a collective look as still as it does, so the blame is on the one that is
    furthest behind. Where that one may take its time, the others only wait for it. Their own time starts when it has
    caught up: its news may come before that of those it kept waiting.
    """
    silent = [peer for peer in peers if now - peer.heard > timeout]
    if silent:
        what = f"sent no sign of life for {timeout:g} s: it is stopped, or its machine or network is down"
        return "\n".join(peer.blame(what) for peer in silent)
    behind = min(peer.status.position for peer in peers)
    last = [peer for peer in peers if peer.status.position == behind]
    excused = any(peer.status.unlimited for peer in last)
    for peer in peers:
        if excused or peer.status.position != behind:
            peer.moved = now
    if excused or any(now - peer.moved <= timeout for peer in last):
        return None
    return "\n".join(peer.blame(f"made no progress for {timeout:g} s") for peer in last)


class Wire:
    """One TCP connection that carries JSON objects, a line each."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        # Lines are short; a peer that takes none of them any more is noticed by its silence.
        connection.settimeout(1.0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self.peer: Peer | None = None
        self.left = False

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, **message: Any) -> bool:
        """Whether the line could be handed to the network."""
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def send_status(self, status: Status) -> bool:
        return self.send(**dataclasses.asdict(status))

    def receive(self) -> list[dict[str, Any]] | None:
        """The lines that have come; None when the other side closed or broke the connection, or talks nonsense."""
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        sound = len(self._rest) < LONGEST_LINE and all(isinstance(message, dict) for message in messages)
        return messages if sound else None

    def close(self) -> None:
        self.socket.close()


def read_status(message: dict[str, Any]) -> Status:
    """The status in a line of `Wire.send_status`."""
    return Status(position=tuple(message["position"]), doing=message["doing"], unlimited=message["unlimited"])
