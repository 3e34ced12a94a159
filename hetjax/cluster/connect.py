"""Joining the processes of a job, and leaving it."""

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
    """Join the job. Must come before JAX is first used: the devices are settled here.

    JAX's own watch over the processes is set to twice `peer_timeout` seconds (at least 10): it ends a process without
    telling which peer is at fault, so it is only a second net behind `Watch`, which looks after `peer_timeout`.

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
    patience = max(10, math.ceil(2 * peer_timeout))
    left = max(1.0, deadline - time.monotonic())
    with _ending_after(left, _nobody_came(environment, join_timeout)):
        jax.distributed.initialize(
            environment.coordinator,
            environment.processes,
            environment.process,
            # An empty list is no restriction; None would make JAX look for one.
            list(environment.local_devices or ()),
            cluster_detection_method="deactivate" if environment.coordinator else DETECTION[environment.manager],
            initialization_timeout=math.ceil(left) + 30,
            heartbeat_timeout_seconds=patience,
            shutdown_timeout_seconds=patience,
        )


def disconnect() -> None:
    """Leave the job, once every process has come here."""
    jax.distributed.shutdown()


def _check_port(coordinator: str) -> None:
    """JAX 0.12 dies of a port that is taken, so it is tried before."""
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
    """Until process 0 listens. JAX would abort the process, without a word of the address."""
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


def _nobody_came(environment: Environment, seconds: float) -> str:
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
