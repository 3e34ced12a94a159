"""What each manager's variables say. The expected values are written by hand from the managers' manuals."""

import pytest

from hetjax.cluster.environment import find_environment
from hetjax.errors import ClusterError

HAND = {"JAX_COORDINATOR_ADDRESS": "node1:9876", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def found(environ):
    e = find_environment(environ)
    return e and (e.manager, e.processes, e.process, e.coordinator, e.local_devices)


def test_no_variables_are_a_run_of_one_process():
    assert find_environment({"PATH": "/bin", "HOME": "/"}) is None


def test_variables_by_hand():
    assert found(HAND) == ("hand", 4, 2, "node1:9876", None)
    assert found(HAND | {"JAX_LOCAL_DEVICE_IDS": "2,3"}) == ("hand", 4, 2, "node1:9876", (2, 3))


def test_a_kubernetes_job_counts_by_its_completion_index():
    job = {name: value for name, value in HAND.items() if name != "JAX_PROCESS_ID"} | {"JOB_COMPLETION_INDEX": "3"}
    assert found(job) == ("kubernetes", 4, 3, "node1:9876", None)
    assert found({"JOB_COMPLETION_INDEX": "3"}) is None


def test_one_process_is_no_job_whoever_says_so():
    assert found(HAND | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None
    assert found(SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None
    assert found(OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}) is None


def test_a_slurm_step_of_several_tasks_a_node_gives_each_one_device():
    assert found(SLURM) == ("slurm", 8, 5, None, (1,))


def test_a_slurm_task_alone_on_its_node_or_with_its_own_device_uses_all_it_sees():
    assert found(SLURM | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"})[4] is None
    assert found(SLURM | {"CUDA_VISIBLE_DEVICES": "3"})[4] is None
    assert found(SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})[4] == (1,)
    assert found(SLURM | {"JAX_LOCAL_DEVICE_IDS": "4,5"})[4] == (4, 5)


def test_a_batch_script_without_srun_is_a_run_of_one_process():
    assert found({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) is None


def test_an_address_alone_overrides_what_the_manager_would_choose():
    address = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:5555"}
    assert found(SLURM | address) == ("slurm", 8, 5, "10.0.0.1:5555", (1,))
    assert found(OPEN_MPI | address) == ("open mpi", 4, 3, "10.0.0.1:5555", (1,))


def test_by_hand_comes_before_a_manager():
    assert found(SLURM | HAND)[0] == "hand"


def test_open_mpi_4_is_found_by_jax_and_open_mpi_5_needs_an_address():
    assert found(OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"})[3] is None
    with pytest.raises(ClusterError, match="mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        found(OPEN_MPI)


@pytest.mark.parametrize("missing", HAND)
def test_a_missing_variable_is_named(missing):
    half = {name: value for name, value in HAND.items() if name != missing}
    with pytest.raises(ClusterError, match=f"needs {missing} beside"):
        found(half)


def test_an_address_alone_without_a_manager_is_refused():
    with pytest.raises(ClusterError, match="needs JAX_NUM_PROCESSES and JAX_PROCESS_ID beside"):
        found({"JAX_COORDINATOR_ADDRESS": "node1:9876"})


def test_a_missing_slurm_variable_is_named():
    with pytest.raises(ClusterError, match="a Slurm step needs SLURM_LOCALID"):
        found({name: value for name, value in SLURM.items() if name != "SLURM_LOCALID"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("JAX_COORDINATOR_ADDRESS", "node1", "HOST:PORT"),
        ("JAX_COORDINATOR_ADDRESS", "node1:99999", "HOST:PORT"),
        ("JAX_NUM_PROCESSES", "four", "whole number"),
        ("JAX_NUM_PROCESSES", "0", "at least one process"),
        ("JAX_PROCESS_ID", "4", "from 0 to 3"),
        ("JAX_PROCESS_ID", "-1", "from 0 to 3"),
        ("JAX_LOCAL_DEVICE_IDS", "a,b", "device numbers"),
    ],
)
def test_a_malformed_value_is_refused(name, value, message):
    with pytest.raises(ClusterError, match=message):
        found(HAND | {name: value})
