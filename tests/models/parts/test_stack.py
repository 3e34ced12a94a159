import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hetjax.models.parts.mlp import SwiGLU
from hetjax.models.parts.stack import Stack


def build(count=4):
    return Stack(lambda rngs: SwiGLU(8, 12, rngs=rngs), count, rngs=nnx.Rngs(3))


def layer(stack, i):
    definition, weights = nnx.split(stack.block)
    return nnx.merge(definition, jax.tree.map(lambda weight: weight[i], weights))


def run(stack, x, each=None):
    return stack.scan(lambda mlp, x, own: (x + mlp(x) * (1 if own is None else own), x.sum()), x, each)


def test_scan_equals_a_python_loop_over_layers():
    stack, x = build(), jax.random.normal(jax.random.key(0), (2, 3, 8))
    scales = jnp.array([1.0, 2.0, -1.0, 0.5])
    got, sums = jax.jit(lambda x: run(stack, x, scales))(x)
    want_sums = []
    for i in range(4):
        want_sums.append(x.sum())
        x = x + layer(stack, i)(x) * scales[i]
    np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sums, want_sums, rtol=1e-5, atol=1e-5)


def test_layers_start_out_different():
    gates = np.asarray(build().block.gate.kernel[...])
    assert len({gate.tobytes() for gate in gates}) == 4


def test_layers_kept_do_not_change():
    whole, part = build(), build()
    part.keep(1, 3)
    assert part.count == 2
    for path, weight in nnx.to_flat_state(nnx.state(part)):
        np.testing.assert_array_equal(weight[...], dict(nnx.to_flat_state(nnx.state(whole)))[path][...][1:3])
        assert weight.out_sharding[0] == "layers"
    x = jnp.ones((1, 2, 8))
    np.testing.assert_allclose(run(part, x)[0], run_layers(whole, x, (1, 2)), rtol=1e-6)


def run_layers(stack, x, indices):
    for i in indices:
        x = x + layer(stack, i)(x)
    return x


def test_a_layer_is_the_same_in_a_deeper_stack():
    shallow, deep = build(2), build(6)
    np.testing.assert_array_equal(shallow.block.up.kernel[...], deep.block.up.kernel[...][:2])


class Tally(nnx.Variable):
    """State that does not train."""


class Counting(nnx.Module):
    """Adds to x, and up what it was given; `untouched` is never set."""

    def __init__(self, rngs: nnx.Rngs):
        self.scale = nnx.Param(jax.random.normal(rngs.params(), (3,)))
        self.seen, self.untouched = Tally(jnp.zeros(3)), Tally(jnp.ones(2))

    def __call__(self, x):
        self.seen[...] = self.seen[...] + x
        return x + self.scale[...]

    def end_of_step(self):
        self.seen[...] = -self.seen[...]


def test_variables_that_layers_set_come_out_for_every_layer():
    @jax.jit
    def run_and_end(state, x):
        stack = nnx.merge(definition, state)
        before = stack.block.untouched[...], stack.block.scale[...]
        x, _ = stack.scan(lambda block, x, _: (block(x), None), x)
        assert (stack.block.untouched[...] is before[0]) and (stack.block.scale[...] is before[1])
        seen = stack.block.seen[...]
        stack.end_of_step()
        return x, seen, stack.block.seen[...]

    stack = Stack(Counting, 4, rngs=nnx.Rngs(3))
    definition, state = nnx.split(stack)
    x = jnp.array([1.0, 2.0, 3.0])
    out, seen, ended = run_and_end(state, x)
    want = x + np.concatenate([np.zeros((1, 3)), np.cumsum(stack.block.scale[...], axis=0)])
    np.testing.assert_allclose(out, want[4], rtol=1e-6)
    np.testing.assert_allclose(seen, want[:4], rtol=1e-6)
    np.testing.assert_array_equal(ended, -seen)


def test_a_stack_whose_layers_set_nothing_runs_in_a_function_that_closes_over_it():
    stack = build()
    assert jax.jit(lambda x: run(stack, x)[0])(jnp.ones((1, 2, 8))).shape == (1, 2, 8)
