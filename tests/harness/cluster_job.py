"""A small job, as a training run goes: connect, compile, step with a sum over all devices, stop together, leave.

python job.py FOLDER STEPS: each process writes its id to FOLDER/started-i once it steps, and its last step to end-i.
"""

import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hetjax.cluster import key_value_store as store
from hetjax.cluster.agree import check_agreement
from hetjax.cluster.agreed_stop import AgreedStop
from hetjax.cluster.connect import connect, disconnect
from hetjax.cluster.environment import find_environment
from hetjax.cluster.watchdog import Watchdog

TIMEOUT = 60
"""Seconds without a heartbeat: long, so that what ends a job sooner is no missing heartbeat."""


def main(folder: Path, steps: int) -> int:
    """Returns the last step that was run."""
    environment = find_environment(os.environ)
    jax.config.update("jax_platforms", "cpu")
    connect(environment, peer_timeout=TIMEOUT, join_timeout=60)
    watchdog = Watchdog.start(environment.process, environment.processes, timeout=TIMEOUT, store=store)
    check_agreement("script", Path(__file__).read_text(), timeout=60)
    mesh = Mesh(jax.devices(), "x")
    rows = NamedSharding(mesh, PartitionSpec("x"))
    value = jax.make_array_from_callback((len(jax.devices()),), rows, lambda index: jnp.ones(1))
    total = jax.jit(lambda x: x.sum() + 0 * x, out_shardings=rows)
    with watchdog.unlimited("compiling"):
        total(value).block_until_ready()
    step, before = 0, value
    with AgreedStop() as stop:
        while step < steps and not stop.reached(step):
            watchdog.set_position((step,), f"step {step + 1}")
            before, value = value, total(value)
            before.block_until_ready()
            step += 1
            if step == 3:
                (folder / f"started-{environment.process}").write_text(str(os.getpid()))
            time.sleep(0.01)
    (folder / f"end-{environment.process}").write_text(str(step))
    with watchdog.unlimited("leaving"):
        disconnect()
    watchdog.close()
    return step


if __name__ == "__main__":
    sys.exit(0 if main(Path(sys.argv[1]), int(sys.argv[2])) == int(sys.argv[2]) else 130)
