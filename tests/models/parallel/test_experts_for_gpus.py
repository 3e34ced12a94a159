"""A mixture of experts compiled for GPUs that are not there: no array holds a worst case, and none a dense product."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.models.kernels.grouped_experts import ExpertKernels
from hetjax.models.parallel.expert_parallel import expert_parallel
from hetjax.models.parallel.layout_in_force import Splits, layout_in_force
from tests.harness.absent_gpus import absent_gpus, compiled_for_gpus, needs_compiler

pytestmark = [pytest.mark.target, pytest.mark.slow, needs_compiler]

DEVICES, EXPERTS, TOKENS, CHOSEN, WIDTH, HIDDEN = 8, 32, 2048, 4, 256, 160


def compiled() -> str:
    """Values and gradients of experts over 8 devices, whose hidden width the kernels do not take as it is."""
    mesh = Mesh(np.array(absent_gpus()), ("expert",))
    axes = {"batch": ("expert",), "experts": ("expert",)}
    splits = Splits(mesh=mesh, axes_of=lambda dim: axes.get(dim, ()))

    def step(x, weights, kernels, experts):
        with layout_in_force(lambda x, dims: x, splits, absent_gpus()[0]):
            y, vjp = jax.vjp(lambda *rest: expert_parallel(rest[0], experts, *rest[1:], "relu2"), x, weights, kernels)
            return vjp(y)

    def shape(*dims, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, P("expert")))

    kernels = ExpertKernels((shape(EXPERTS, WIDTH, HIDDEN),), shape(EXPERTS, HIDDEN, WIDTH))
    chosen = DEVICES, TOKENS, CHOSEN
    arguments = shape(DEVICES, TOKENS, WIDTH), shape(*chosen, dtype=jnp.float32), kernels
    return compiled_for_gpus(step, *arguments, shape(*chosen, dtype=jnp.int32)).as_text()


def test_arrays_hold_what_usually_arrives():
    text = compiled()
    # Two forward and four backward, and in further rounds as many with the first one of the forward once more.
    assert len(re.findall(r'custom_call_target="mosaic_gpu', text)) == 2 + 4 + 2 + 5
    assert "ragged-all-to-all" in text
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"(?:bf16|f32)\[([\d,]+)\]", text)}
    assert max(map(math.prod, shapes)) <= 1.6 * TOKENS * CHOSEN * WIDTH
