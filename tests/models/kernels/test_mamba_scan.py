"""The recurrence by chunks against the recurrence row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.models.kernels.mamba_scan import ssd_scan, ssd_step
from tests.harness.models.mamba_stepwise import recurrence

HEADS, GROUPS, WIDTH, STATE = 6, 2, 3, 5


def inputs(samples: int, length: int, dtype=np.float64, seed: int = 0):
    """x, dt, a, b, c, d; steps so long that some states are forgotten at once, and others not at all."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, length, HEADS, WIDTH))
    dt = np.exp(rng.uniform(np.log(1e-4), np.log(3), (samples, length, HEADS)))
    a = -rng.uniform(0.1, 16, HEADS)
    b, c = rng.normal(size=(2, samples, length, GROUPS, STATE))
    return tuple(jnp.asarray(each, dtype) for each in (x, dt, a, b, c, rng.normal(size=HEADS)))


def borders(samples: int, length: int, seed: int = 1):
    return np.random.default_rng(seed).random((samples, length)) < 0.3


def initial(samples: int, seed: int = 2):
    return np.random.default_rng(seed).normal(size=(samples, HEADS, WIDTH, STATE))


def error(got, want) -> float:
    return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())


scan = jax.jit(ssd_scan, static_argnames="chunk")


@pytest.mark.parametrize("given", ["nothing", "borders", "state", "both"])
@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (3, 1), (4, 4), (7, 3), (8, 4), (9, 128), (13, 5)])
def test_chunks_equal_row_by_row(float64, length, chunk, given):
    arrays = inputs(2, length)
    starts = borders(2, length) if given in ("borders", "both") else None
    state = initial(2) if given in ("state", "both") else None
    got = scan(*arrays, chunk=chunk, starts=starts, state=state)
    for new, old in zip(got, recurrence(*arrays, starts, state), strict=True):
        assert new.dtype == jnp.float64
        assert error(new, old) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("length", range(1, 20))
@pytest.mark.parametrize("chunk", range(1, 9))
def test_any_length_and_chunk_equal_row_by_row(float64, length, chunk):
    arrays, starts, state = inputs(3, length, seed=length), borders(3, length, seed=chunk), initial(3)
    for new, old in zip(
        scan(*arrays, chunk=chunk, starts=starts, state=state), recurrence(*arrays, starts, state), strict=True
    ):
        assert error(new, old) < 1e-12


def test_steps_equal_row_by_row(float64):
    x, dt, a, b, c, d = inputs(2, 5)
    want, want_state = recurrence(x, dt, a, b, c, d, None, initial(2))
    state = jnp.asarray(initial(2))
    for t in range(5):
        y, state = ssd_step(x[:, t], dt[:, t], a, b[:, t], c[:, t], d, state)
        assert error(y, want[:, t]) < 1e-12
    assert error(state, want_state) < 1e-12


def test_gradients_equal_those_of_the_recurrence(float64):
    """Those of a loop of steps, whose values are checked above; a document starts where the state is set to 0."""
    arrays, starts, state = inputs(2, 7), borders(2, 7), jnp.asarray(initial(2))
    rng = np.random.default_rng(3)
    weights = jnp.asarray(rng.normal(size=(2, 7, HEADS, WIDTH))), jnp.asarray(rng.normal(size=state.shape))

    def by_steps(x, dt, a, b, c, d, state):
        rows = []
        for t in range(x.shape[1]):
            state = jnp.where(starts[:, t, None, None, None], 0, state)
            y, state = ssd_step(x[:, t], dt[:, t], a, b[:, t], c[:, t], d, state)
            rows.append(y)
        return jnp.stack(rows, axis=1), state

    def by_chunks(*arrays):
        return ssd_scan(*arrays[:-1], chunk=3, starts=starts, state=arrays[-1])

    got, want = (jax.jit(jax.grad(lambda *g, f=f: total(f(*g), weights), argnums=range(7)))(*arrays, state)
                 for f in (by_chunks, by_steps))  # fmt: skip
    for new, old in zip(got, want, strict=True):
        assert error(new, np.asarray(old)) < 1e-11


def total(outputs, weights):
    return sum(jnp.vdot(output, weight) for output, weight in zip(outputs, weights, strict=True))


@pytest.mark.parametrize("scale", [1e-6, 50.0, 1e4])
def test_steps_of_any_size_have_finite_values_and_gradients(scale):
    """Of an unseen pair, the exponent goes up to chunk * dt * A: far beyond what float32 holds."""
    x, _, a, b, c, d = inputs(1, 40, np.float32)
    dt, starts = jnp.full((1, 40, HEADS), scale, jnp.float32), borders(1, 40)

    def objective(x, dt, a, b, c, d):
        y, state = ssd_scan(x, dt, a, b, c, d, chunk=16, starts=starts)
        return jnp.sum(y) + jnp.sum(state), (y, state)

    gradients, outputs = jax.jit(jax.grad(objective, argnums=range(6), has_aux=True))(x, dt, a, b, c, d)
    assert all(np.isfinite(each).all() for each in (*gradients, *outputs))


def test_a_border_keeps_out_everything_before_it_exactly():
    """Not a bit of what follows a border, here inside of a chunk, depends on what is ahead of it."""
    arrays = inputs(1, 11, np.float32)
    starts = np.zeros((1, 11), bool)
    starts[0, 6] = True
    x, dt, a, b, c, d = arrays
    others = x.at[:, :6].set(1e9), dt.at[:, :6].set(3), a, b.at[:, :6].set(-1e9), c.at[:, :6].set(5), d
    state = jnp.full((1, HEADS, WIDTH, STATE), 1e20, jnp.float32)
    one, other = scan(*arrays, chunk=4, starts=starts), scan(*others, chunk=4, starts=starts, state=state)
    assert np.abs(other[0][:, :6]).max() > 1e9
    np.testing.assert_array_equal(one[0][:, 6:], other[0][:, 6:])
    np.testing.assert_array_equal(one[1], other[1])


def test_bfloat16_rows_keep_a_float32_state():
    """A state of many small additions: in bfloat16 it would stop growing at 256 of them."""
    rows = 1024
    ones = lambda *shape: jnp.ones(shape, jnp.bfloat16)  # noqa: E731
    x, b = ones(1, rows, 1, 1), ones(1, rows, 1, 1)
    dt, zero = jnp.ones((1, rows, 1), jnp.float32), jnp.zeros(1, jnp.float32)
    y, state = scan(x, dt, zero, b, b, zero, chunk=16)
    assert (y.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)
    assert state.item() == rows


def test_the_backward_keeps_the_arguments_and_a_state_a_chunk():
    samples, length, chunk = 2, 64, 16
    arrays = inputs(samples, length, np.float32)
    _, vjp = jax.vjp(lambda *arrays: ssd_scan(*arrays, chunk=chunk), *arrays)
    kept = {leaf.unsafe_buffer_pointer(): leaf.size for leaf in jax.tree.leaves(vjp)}
    given = sum(each.size for each in arrays)
    states = samples * length // chunk * HEADS * WIDTH * STATE
    # Beside these: sums of a, as large as dt; decays, one a chunk and head; and the state that comes first.
    more = arrays[1].size + samples * length // chunk * HEADS + samples * HEADS * WIDTH * STATE
    assert sum(kept.values()) <= given + states + more + 16, kept
