import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from hetjax.compilation.hlo import collectives
from hetjax.meshes import Layout
from hetjax.models.dims import RESIDUAL, SEQUENCE
from hetjax.models.parallel.layout_in_force import layout_in_force
from hetjax.models.parallel.sharded_linear import sharded_linear
from hetjax.models.parts.linear import Linear
from tests.harness.models.layouts import constraint_of, splits_of

# B batch · S sequence · D width · F hidden width
B, S, D, F = 4, 8, 12, 16
LAYOUTS = {
    "tensor4": Layout(tensor=4),
    "tensor4-whole-rows": Layout(tensor=4, sequence_parallel=False),
    "data2-fsdp2-tensor2": Layout(data=2, fsdp=2, tensor=2),
    "data2-fsdp2-tensor2-zero1": Layout(data=2, fsdp=2, tensor=2, zero=1),
    "expert2-context2-tensor2": Layout(expert=2, context=2, tensor=2),
    # ExpertKernels are gathered over an axis that the rows are not split by: the compiler's to run.
    "batch-not-on-fsdp": Layout(data=2, fsdp=2, tensor=2, rules={"batch": "data"}),
}


def build():
    rngs = nnx.Rngs(0)
    both = [Linear({"embed": D}, {"mlp": F}, bias=True, rngs=rngs) for _ in range(2)]
    return nnx.List([*both, Linear({"mlp": F}, {"embed": D}, bias=True, rngs=rngs)])


def value_and_gradients(layout, dtype):
    """Of two maps out, their product, and one map back; None for one device."""
    definition, weights = nnx.split(build())
    random = np.random.default_rng(1)
    weights = jax.tree.map(lambda w: random.normal(size=w.shape).astype(dtype), weights)
    x, weight = (random.normal(size=(B, S, D)).astype(dtype) for _ in range(2))

    def objective(weights, x):
        one, other, back = nnx.merge(definition, weights)
        first, second = sharded_linear(x, one, other, given=RESIDUAL, wanted=SEQUENCE)
        return jnp.sum(weight * sharded_linear(first * second, back, given=SEQUENCE, wanted=RESIDUAL)[0])

    if layout is None:
        return jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))(weights, x)
    splits = splits_of(layout)
    names = [("embed", "mlp"), ("mlp",)] * 2 + [("mlp", "embed"), ("width",)]
    leaves, tree = jax.tree.flatten(weights)
    # A layer's state is in the order of its names: the bias first.
    names = [dims for pair in zip(names[1::2], names[::2], strict=True) for dims in pair]
    placed = [
        jax.device_put(leaf, NamedSharding(splits.mesh, layout.compute_spec(dims, leaf.shape, name="w")))
        for leaf, dims in zip(leaves, names, strict=True)
    ]

    def sharded(weights, x):
        with layout_in_force(constraint_of(layout), splits):
            return objective(weights, x)

    return jax.jit(jax.value_and_grad(sharded, argnums=(0, 1)))(tree.unflatten(placed), x)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_split_maps_give_the_values_and_gradients_of_whole_ones(float64, layout):
    want, got = value_and_gradients(None, np.float64), value_and_gradients(layout, np.float64)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.abs(b).max())


def test_maps_of_the_same_rows_gather_them_once_and_sum_their_gradients_once():
    layout = Layout(tensor=4)
    splits = splits_of(layout)
    linears = build()

    def run(x, y):
        with layout_in_force(constraint_of(layout), splits):
            results, vjp = jax.vjp(
                lambda x: sharded_linear(x, linears[0], linears[1], given=RESIDUAL, wanted=SEQUENCE), x
            )
        return results, vjp((y, y))

    x, y = (jnp.ones((B, S, width), jnp.float32) for width in (D, F))
    x = jax.device_put(x, NamedSharding(splits.mesh, layout.activation_spec((*RESIDUAL, "embed"), x.shape, name="x")))
    y = jax.device_put(y, NamedSharding(splits.mesh, layout.activation_spec((*SEQUENCE, "mlp"), y.shape, name="y")))
    kinds = [each.kind for each in collectives(jax.jit(run).lower(x, y).compile().as_text())]
    assert sorted(kinds) == ["all-gather", "reduce-scatter"]
