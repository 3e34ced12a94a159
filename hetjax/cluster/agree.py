"""Check that all processes of a job are about to run the same, and gather what each of them knows."""

from __future__ import annotations

import itertools

from hetjax.cluster import key_value_store as store
from hetjax.errors import ClusterError

# Every process checks the same things in the same order, so the count is the same in all.
_checks = itertools.count()


def check_agreement(what: str, value: str, *, timeout: float) -> None:
    """Compare a value, such as the hash of the schedule, over all processes; nothing to do in a run of one.

    Every process must call it. Process 0 compares, and all read its result.

    Raises ClusterError in every process if one has another value than process 0, or does not come within
    `timeout` seconds.
    """
    if store.processes() == 1:
        return
    folder = f"hetjax/agreement/{next(_checks)}"
    store.put(f"{folder}/value/{store.process()}", value)
    if store.process() == 0:
        store.put(f"{folder}/result", _compare(what, value, folder, timeout))
    # Process 0 may need all of the time before it answers.
    result = store.get(f"{folder}/result", 2 * timeout)
    if result:
        raise ClusterError(result)


def gather(value: str, *, timeout: float) -> list[str]:
    """Return the values of all processes, by their number. Every process must call it.

    Raises ClusterError where one does not send its own within `timeout` seconds.
    """
    if store.processes() == 1:
        return [value]
    folder = f"hetjax/agreement/{next(_checks)}"
    store.put(f"{folder}/{store.process()}", value)
    return [store.get(f"{folder}/{process}", timeout) for process in range(store.processes())]


def _compare(what: str, value: str, folder: str, timeout: float) -> str:
    """Return what is wrong, or an empty string."""
    others: dict[str, list[int]] = {}
    for process in range(1, store.processes()):
        try:
            other = store.get(f"{folder}/value/{process}", timeout)
        except ClusterError:
            return (
                f"process {process} did not send its {what} within {timeout:g} s; run the same command, config and "
                "version on all"
            )
        if other != value:
            others.setdefault(other, []).append(process)
    if not others:
        return ""
    differing = "; ".join(f"{_name(at)} another {what} than process 0: {other}" for other, at in others.items())
    return f"{differing}; process 0 has {value}; run the same command, config and version on all"


def _name(processes: list[int]) -> str:
    if len(processes) == 1:
        return f"process {processes[0]} has"
    return f"processes {', '.join(map(str, processes[:-1]))} and {processes[-1]} have"
