"""Join the processes of a job, and leave it."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Iterator

import jax

from hetjax.cluster.environment import Environment
from hetjax.cluster.exit_codes import end_process
from hetjax.errors import ClusterError

# The names under which JAX knows the managers whose coordinator it finds itself.
DETECTION = {"slurm": "slurm", "open mpi": "ompi"}


def connect(environment: Environment, *, peer_timeout: float, join_timeout: float = 300) -> None:
    """Join the job. Must come before JAX is first used, as it settles the devices.

    JAX's own heartbeats are given twice `peer_timeout` seconds (at least 10): JAX ends a process without saying which
    peer is at fault, so it only stands behind `Watchdog`, which acts after `peer_timeout`.

    Raises ClusterError when process 0 cannot be reached, or its port is taken. If the others do not come within
    `join_timeout` seconds, the process ends with a message and the code `PEER_LOST`: JAX would abort it.
    """
    deadline = time.monotonic() + join_timeout
    if environment.coordinator is not None:
        if environment.process == 0:
            _check_port(environment.coordinator)
        else:
            _wait_for_coordinator(environment, join_timeout)
    # A SIGTERM that JAX keeps for itself from here on could no longer end a process that compiles.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    heartbeat_timeout = max(10, math.ceil(2 * peer_timeout))
    left = max(1.0, deadline - time.monotonic())
    with _ending_after(left, _join_timeout_message(environment, join_timeout)):
        jax.distributed.initialize(
            environment.coordinator,
            environment.processes,
            environment.process,
            # An empty list is no restriction; None would make JAX look for one.
            list(environment.local_devices or ()),
            cluster_detection_method="deactivate" if environment.coordinator else DETECTION[environment.manager],
            initialization_timeout=math.ceil(left) + 30,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=heartbeat_timeout,
        )


def disconnect() -> None:
    """Leave the job, once every process has called this."""
    jax.distributed.shutdown()


def _check_port(coordinator: str) -> None:
    """Raise ClusterError for a port that is taken: JAX 0.12 dies of one."""
    port = int(coordinator.rpartition(":")[2])
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise ClusterError(
            f"process 0 cannot listen on port {port} of the coordinator {coordinator}: {error.strerror}; choose "
            "another port in JAX_COORDINATOR_ADDRESS for all processes, or end the job that holds it"
        ) from None


def _wait_for_coordinator(environment: Environment, seconds: float) -> None:
    """Wait until process 0 listens. JAX would abort the process, and not name the address."""
    address = environment.coordinator
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"process {environment.process} of {environment.processes} could not reach process 0 at {address} "
                    f"for {seconds:g} s ({error.strerror or error}); check that process 0 runs, that the host is that "
                    "of process 0 as the other machines know it, and that no firewall closes the port"
                ) from None
            time.sleep(min(0.2, seconds / 4))


def _join_timeout_message(environment: Environment, seconds: float) -> str:
    where = environment.coordinator or f"the address that JAX finds from the variables of {environment.manager}"
    return (
        f"process {environment.process} of {environment.processes}: the processes did not all meet at {where} within "
        f"{seconds:g} s; check that every one was started, with its own process number and the same address and count"
    )


@contextlib.contextmanager
def _ending_after(seconds: float, message: str) -> Iterator[None]:
    """End the process with a message if the block, which may hang outside Python, takes too long."""
    timer = threading.Timer(seconds, end_process, (message,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
