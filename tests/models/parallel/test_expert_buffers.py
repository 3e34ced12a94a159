"""What a mixture of experts holds on a device, read from its traced program: room for what usually arrives."""

import math
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from hetjax.models.kernels.checks import HOPPER_EXPERTS
from hetjax.models.kernels.grouped_experts import ExpertKernels
from hetjax.models.parallel.expert_parallel import expert_parallel
from hetjax.models.parallel.expert_sharding import expert_sharding
from hetjax.models.parallel.layout_in_force import Splits, layout_in_force

DEVICES, EXPERTS, TOKENS, CHOSEN, WIDTH = 32, 128, 2048, 6, 64
DEVICE = {
    "dense": types.SimpleNamespace(platform="cpu"),
    "ragged": types.SimpleNamespace(platform="gpu", compute_capability="9.0"),
}


def arrays_inside(jaxpr):
    """(name, shape) of all that the equations of devices make."""
    for equation in jaxpr.eqns:
        inner = [each for value in equation.params.values() for each in jax.tree.leaves(value, is_leaf=is_program)]
        if equation.primitive.name != "shard_map":
            yield from ((equation.primitive.name, variable.aval) for variable in equation.outvars)
        for each in inner:
            if is_program(each):
                yield from arrays_inside(getattr(each, "jaxpr", each))


def is_program(value) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


@pytest.mark.parametrize("exchange", DEVICE)
def test_no_array_is_larger_than_three_times_the_chosen_tokens(exchange):
    """With 32 devices all tokens may ask for one: room for that would be 21 times the tokens that are chosen."""
    mesh = AbstractMesh((DEVICES,), ("expert",), axis_types=(AxisType.Auto,))
    axes = {"batch": ("expert",), "experts": ("expert",)}
    splits = Splits(mesh=mesh, axes_of=lambda dim: axes.get(dim, ()))
    shape = lambda *dims, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(dims, dtype)  # noqa: E731
    chosen = DEVICES, TOKENS, CHOSEN
    arguments = (
        shape(DEVICES, TOKENS, WIDTH),
        shape(*chosen, dtype=jnp.float32),
        ExpertKernels((shape(EXPERTS, WIDTH, WIDTH),), shape(EXPERTS, WIDTH, WIDTH)),
    )

    def step(experts, x, weights, kernels):
        with layout_in_force(lambda x, dims: x, splits, DEVICE[exchange]):
            y, vjp = jax.vjp(lambda *rest: expert_parallel(rest[0], experts, *rest[1:], "relu2"), x, weights, kernels)
            return vjp(y)

    traced = jax.make_jaxpr(step)(shape(*chosen, dtype=jnp.int32), *arguments)
    found = list(arrays_inside(traced.jaxpr))
    sizes = [(math.prod(aval.shape), aval) for name, aval in found if math.prod(aval.shape) > 1]
    size, largest = max(sizes, key=lambda each: each[0])
    assert TOKENS * CHOSEN * WIDTH < size <= 1.7 * TOKENS * CHOSEN * WIDTH, largest
    names = {name for name, _ in found}
    assert "while" in names and (exchange == "ragged") == ("ragged_all_to_all" in names)


def test_a_kernel_that_was_replaced_gives_way_to_blocks():
    def method(replaced=frozenset()):
        with layout_in_force(lambda x, dims: x, device=DEVICE["ragged"], replaced_kernels=replaced):
            return expert_sharding(8, 128, jnp.bfloat16, "relu2", None, 1.2).method

    assert (method(), method({HOPPER_EXPERTS})) == ("hopper", "blocks")
