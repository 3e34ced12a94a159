"""A ragged boundary compiled for GPUs that are not there: tokens cross by a ragged collective, and by nothing else."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hetjax.boundary.ragged import RaggedTransport
from hetjax.compilation.hlo import collectives
from tests.harness.absent_gpus import absent_gpus, needs_compiler

pytestmark = [pytest.mark.target, needs_compiler]

ROWS, TOKENS, WIDTH = 8, 1024, 2048


@pytest.mark.parametrize("destination", [range(4, 8), range(8)])
def test_tokens_cross_by_a_ragged_collective(destination):
    gpus = absent_gpus()
    batch = PartitionSpec("data")
    source = NamedSharding(Mesh(np.array(gpus[:4]), ("data",)), batch)
    others = np.array([gpus[i] for i in destination]).reshape(2, -1)
    sharding = NamedSharding(Mesh(others, ("data", "tensor")), batch)
    shape = (ROWS, TOKENS, WIDTH)
    transport = RaggedTransport(source, sharding, shape, shape, jnp.bfloat16).compile()
    for way in (transport.forward, transport.backward):
        assert way.exchange.bytes_sent is None  # as many as must move
        kinds = {each.kind for each in collectives(way.programs["cross"].text)}
        assert kinds == {"ragged-all-to-all"}, kinds
        # Beside what comes and goes, room for what is sent and what arrives.
        tile = ROWS // 4 * TOKENS * WIDTH * 2
        print(way.programs["cross"].memory)
        assert way.programs["cross"].memory.temporary <= 8 * tile
