"""Read which process of how many this one is from the environment that a cluster's manager sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from hetjax.errors import ClusterError

ADDRESS, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LOCAL_DEVICES, COMPLETION_INDEX = "JAX_LOCAL_DEVICE_IDS", "JOB_COMPLETION_INDEX"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """This process's place in a job of several.

    Attributes:
        manager: Who started the processes: "hand", "kubernetes", "slurm" or "open mpi".
        processes: How many there are, at least 2.
        process: Which of them this one is, from 0.
        coordinator: "host:port" that process 0 listens on; None where JAX finds it from the manager's variables.
        local_devices: The accelerators of its machine that this process uses; None for all that it sees.
    """

    manager: str
    processes: int
    process: int
    coordinator: str | None
    local_devices: tuple[int, ...] | None


def find_environment(environ: Mapping[str, str]) -> Environment | None:
    """Return this process's place in the job that these variables describe; None for a run of one process.

    Raises ClusterError for variables that are half set, malformed or contradict each other.
    """
    environ = {name: value for name, value in environ.items() if value}
    found = _by_hand(environ) or _slurm(environ) or _open_mpi(environ)
    if found is None or found.processes == 1:
        return None
    if not 0 <= found.process < found.processes:
        raise ClusterError(
            f"{found.manager}: this is process {found.process} of {found.processes}; the processes count from 0 to "
            f"{found.processes - 1}"
        )
    return found


def _by_hand(environ: Mapping[str, str]) -> Environment | None:
    """Read the three variables that `hetjax launch`, a Kubernetes job or a person sets."""
    managed = "SLURM_STEP_NODELIST" in environ or "OMPI_COMM_WORLD_SIZE" in environ
    if PROCESSES not in environ and PROCESS not in environ and (managed or ADDRESS not in environ):
        # An address alone only overrides what a manager would choose.
        return None
    index = PROCESS if PROCESS in environ or COMPLETION_INDEX not in environ else COMPLETION_INDEX
    _need(environ, (ADDRESS, PROCESSES, index), "a job by hand")
    return Environment(
        manager="hand" if index == PROCESS else "kubernetes",
        processes=_count(environ, PROCESSES),
        process=_number(environ, index),
        coordinator=_address(environ),
        local_devices=_local_devices(environ),
    )


def _slurm(environ: Mapping[str, str]) -> Environment | None:
    """Read the variables of a step of srun. A batch script's own shell has no step, and is a run of one process."""
    if "SLURM_STEP_NODELIST" not in environ or environ.get("SLURM_NTASKS") == "1":
        return None
    _need(environ, ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"), "a Slurm step")
    tasks = _count(environ, "SLURM_NTASKS")
    alone = environ.get("SLURM_STEP_NUM_NODES") == str(tasks)
    return Environment(
        manager="slurm",
        processes=tasks,
        process=_number(environ, "SLURM_PROCID"),
        coordinator=_address(environ),
        local_devices=_share(environ, "SLURM_LOCALID", alone=alone),
    )


def _open_mpi(environ: Mapping[str, str]) -> Environment | None:
    if environ.get("OMPI_COMM_WORLD_SIZE", "1") == "1":
        return None
    names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    _need(environ, names, "Open MPI")
    if ADDRESS not in environ and "OMPI_MCA_orte_hnp_uri" not in environ:
        raise ClusterError(
            f"Open MPI: {ADDRESS} is not set, and since version 5 Open MPI does not say where its processes can meet; "
            f"run `mpirun -x {ADDRESS}=HOST:PORT ...`, with the host of rank 0 and a free port of it"
        )
    return Environment(
        manager="open mpi",
        processes=_count(environ, "OMPI_COMM_WORLD_SIZE"),
        process=_number(environ, "OMPI_COMM_WORLD_RANK"),
        coordinator=_address(environ),
        local_devices=_share(
            environ, "OMPI_COMM_WORLD_LOCAL_RANK", alone=environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
        ),
    )


def _share(environ: Mapping[str, str], local_rank: str, *, alone: bool) -> tuple[int, ...] | None:
    """Return the devices of a process that may share its machine: one each, unless given or it sees only one."""
    if LOCAL_DEVICES in environ:
        return _local_devices(environ)
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    if alone or (visible and "," not in visible):
        return None
    return (_number(environ, local_rank),)


def _local_devices(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    if LOCAL_DEVICES not in environ:
        return None
    try:
        return tuple(int(index) for index in environ[LOCAL_DEVICES].split(","))
    except ValueError:
        raise ClusterError(f"{LOCAL_DEVICES}={environ[LOCAL_DEVICES]!r}: give device numbers, such as 0,1") from None


def _address(environ: Mapping[str, str]) -> str | None:
    if ADDRESS not in environ:
        return None
    host, _, port = environ[ADDRESS].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ClusterError(f"{ADDRESS}={environ[ADDRESS]!r}: give HOST:PORT, such as node1:9876")
    return environ[ADDRESS]


def _need(environ: Mapping[str, str], names: tuple[str, ...], what: str) -> None:
    missing = [name for name in names if name not in environ]
    if missing:
        given = ", ".join(f"{name}={environ[name]}" for name in names if name in environ)
        also = f" beside {given}" if given else ""
        raise ClusterError(f"{what} needs {' and '.join(missing)}{also}: set all of {', '.join(names)}, or none")


def _count(environ: Mapping[str, str], name: str) -> int:
    count = _number(environ, name)
    if count < 1:
        raise ClusterError(f"{name}={count}: a job has at least one process")
    return count


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise ClusterError(f"{name}={environ[name]!r}: give a whole number") from None
