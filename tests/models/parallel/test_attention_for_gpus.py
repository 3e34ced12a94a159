"""Attention compiled for GPUs that are not there: what is in memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.models.parallel.layout_in_force import Splits, layout_in_force
from hetjax.models.parallel.sharded_attention import sharded_attention
from hetjax.models.parallel.zigzag_order import causal_order
from tests.harness.absent_gpus import absent_gpus, compiled_for_gpus, needs_compiler

pytestmark = [pytest.mark.target, needs_compiler]

# B batch · S sequence · H heads · G groups · K head width
H, G, K = 8, 2, 80
AXES = {"batch": ("data",), "seq": ("context",), "heads": ("tensor",)}


def compiled(length: int, form: str, *, packed: bool = True, slots: int | None = None, causal: bool = True, **degrees):
    """Values and gradients of attention in bfloat16; with `slots`, values of a prompt against a cache."""
    degrees = {"data": 1, "context": 1, "tensor": 1, **degrees}
    count = int(np.prod(list(degrees.values())))
    mesh = Mesh(np.array(absent_gpus()[:count]).reshape(*degrees.values()), tuple(degrees))
    axes_of = lambda dim: tuple(axis for axis in AXES.get(dim, ()) if degrees[axis] > 1)  # noqa: E731
    splits = Splits(mesh=mesh, axes_of=axes_of, context_attention=form)

    def run(query, key, value, gradient, ids):
        with layout_in_force(lambda x, dims: x, splits, absent_gpus()[0]):
            if slots:
                return sharded_attention(query, key, value, positions=ids)
            order = causal_order(length) if causal else None
            attend = lambda *qkv: sharded_attention(*qkv, order=order, segments=ids if packed else None)  # noqa: E731
            output, vjp = jax.vjp(attend, query, key, value)
            return output, vjp(gradient)

    def shape(positions, *rest, dtype=jnp.bfloat16):
        spec = P("data", "context" if not slots else None, *["tensor"][: len(rest)])
        return jax.ShapeDtypeStruct((degrees["data"], positions, *rest), dtype, sharding=NamedSharding(mesh, spec))

    query, key = shape(length, H, K), shape(slots or length, G, K)
    return compiled_for_gpus(run, query, key, key, query, shape(length, dtype=jnp.int32))


def check(program, length: int, kernels: int, *, temporary: float):
    """No array has two dims of sequence length; so many kernels; temporaries in units of the queries in bfloat16."""
    text = program.as_text()
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\w+\[([\d,]+)\]", text)}
    assert not [dims for dims in shapes if sum(size >= length for size in dims) > 1]
    assert text.count("__gpu$xla.gpu.triton") == kernels
    unit = length * H * K * 2
    assert program.memory_analysis().temp_size_in_bytes <= temporary * unit


@pytest.mark.parametrize("causal", [True, False])
def test_packed_sequences_hold_no_scores(causal):
    # The log-sum-exp, the projection and bounds are kept beside the output.
    check(compiled(8192, "ring", causal=causal), 8192, 3, temporary=1.5)


@pytest.mark.parametrize("form", ["ring", "all_gather"])
def test_a_ring_holds_no_tile_of_scores(form):
    # Two devices, causal: 2 * 2 + 1 tiles, each with a kernel forward and two backward. What tiles go on from is
    # float32; one tile of scores would be 25 units.
    check(compiled(8192, form, packed=False, context=2, tensor=2), 2048, 15, temporary=12)


def test_a_prompt_against_a_cache_holds_no_scores():
    check(compiled(4096, "ring", slots=6144, data=2), 4096, 1, temporary=0.2)
