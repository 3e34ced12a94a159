"""Short values that the processes of a job share, kept by the coordination service of process 0.

The service is part of `jax.distributed`, and every multi-process library uses its key-value store, but JAX has no
public name for the connected client: it is the `global_state` below. This is the only file that knows it, so
that a JAX that moves it breaks here and nowhere else. All calls need `hetjax.cluster.connect` before them.
"""

from __future__ import annotations

import jax
from jax._src.distributed import global_state

from hetjax.errors import ClusterError


def process() -> int:
    """Return which process of the job this is; does not start a backend."""
    return global_state.process_id


def processes() -> int:
    """Return how many processes the job has; does not start a backend."""
    return global_state.num_processes


def coordinator_host() -> str:
    """Return the host of process 0, as the other processes reach it."""
    return global_state.coordinator_address.rpartition(":")[0].strip("[]")


def put(key: str, value: str) -> None:
    """Store a value; one of the same key is replaced."""
    global_state.client.key_value_set(key, value, allow_overwrite=True)


def get(key: str, timeout: float) -> str:
    """Return a value, waited for up to `timeout` seconds. Raises ClusterError when nobody stored it in that time."""
    try:
        return global_state.client.blocking_key_value_get(key, round(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise ClusterError(f"no process stored a value for {key!r} within {timeout:g} s") from None


def try_get(key: str) -> str | None:
    """Return a value, or None where there is none yet; does not wait."""
    try:
        return global_state.client.key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None


def list_values(folder: str) -> list[str]:
    """Return all values whose key begins with `folder` and a slash, in no order; does not wait."""
    return [value for _, value in global_state.client.key_value_dir_get(folder)]
