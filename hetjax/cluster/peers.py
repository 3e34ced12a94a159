"""Record the heartbeats and the progress of each process of a job, and find those that are lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hetjax.cluster.messages import Status

RESUME = "run the same command to resume from the last checkpoint"


def heartbeat_interval(timeout: float, processes: int) -> float:
    """Return the seconds between two heartbeats: ten in the timeout at least, and no more than process 0 can read."""
    return min(timeout / 10, max(1.0, processes / 1000))


@dataclasses.dataclass
class Peer:
    """A process as another one sees it; times are of this machine's monotonic clock, in seconds.

    Attributes:
        process: Its number in the job.
        processes: How many processes the job has.
        host: The name of its machine.
        pid: Its process id on that machine.
        last_heartbeat: When its last heartbeat came.
        last_progress: When it last made progress, or last was seen to wait for another process.
        status: What it was doing at its last heartbeat.
    """

    process: int
    processes: int
    host: str
    pid: int
    last_heartbeat: float
    last_progress: float
    status: Status = dataclasses.field(default_factory=Status)

    def update(self, status: Status, now: float) -> None:
        """Record a heartbeat."""
        self.last_heartbeat = now
        if status != self.status:
            self.status, self.last_progress = status, now

    def allow(self, seconds: float) -> None:
        """Do not count a time in which nobody read its heartbeats."""
        self.last_heartbeat += seconds
        self.last_progress += seconds

    def __str__(self) -> str:
        return f"process {self.process} of {self.processes} (host {self.host}, pid {self.pid})"

    def lost_message(self, what: str) -> str:
        """Return the message that ends the job since this process is lost; `what` happened to it."""
        return f"{self} {what}; last seen: {self.status.doing}; {RESUME}"


def find_lost(peers: Sequence[Peer], timeout: float, now: float) -> str | None:
    """Return the message that ends the job, if one of these processes is silent or hangs; None while all is well.

    Peers that wait for a hung one in a collective make as little progress as it does, so it is the one furthest
    behind that hangs. Where that one may take any time, the others only wait for it. Their own time starts when it has
    caught up: its heartbeat may come before those of the ones it kept waiting.
    """
    silent = [peer for peer in peers if now - peer.last_heartbeat > timeout]
    if silent:
        what = f"sent no heartbeat for {timeout:g} s: it is stopped, or its machine or network is down"
        return "\n".join(peer.lost_message(what) for peer in silent)
    behind = min(peer.status.position for peer in peers)
    last = [peer for peer in peers if peer.status.position == behind]
    excused = any(peer.status.unlimited for peer in last)
    for peer in peers:
        if excused or peer.status.position != behind:
            peer.last_progress = now
    if excused or any(now - peer.last_progress <= timeout for peer in last):
        return None
    return "\n".join(peer.lost_message(f"made no progress for {timeout:g} s") for peer in last)
