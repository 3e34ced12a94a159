import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hetjax.errors import GraphError
from hetjax.stages.flat_state import flatten_module
from tests.harness.small_modules import IN, WIDTH, Noisy, Tower


class Listed(nnx.Module):
    """Layers in a list, a tied weight, a plain array and a counter."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(IN, WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)])
        self.tied = self.layers[1].kernel
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls[...] += 1
        return self.layers[1](self.layers[0](x)) @ self.tied


def flat(module: nnx.Module) -> dict[str, np.ndarray]:
    """Every array by path; keys as their data."""
    return {
        "/".join(map(str, path)): np.asarray(
            jax.random.key_data(leaf[...]) if jnp.issubdtype(leaf[...].dtype, jax.dtypes.prng_key) else leaf[...]
        )
        for path, leaf in nnx.to_flat_state(nnx.state(module))
    }


@pytest.mark.parametrize("kind", [Listed, Noisy, Tower])
def test_a_module_taken_apart_and_assembled_has_every_array_at_its_path(kind):
    module = kind(nnx.Rngs(0))
    skeleton, params, buffers = flatten_module(module)
    expected = flat(module)
    assert set(params) | set(buffers) == set(expected) == set(skeleton.paths)
    assert set(params) == skeleton.params
    again = flat(skeleton.assemble(params, buffers))
    for path, value in expected.items():
        np.testing.assert_array_equal(again[path], value)
        np.testing.assert_array_equal({**params, **buffers}[path], value)


def test_weights_train_and_statistics_counters_and_keys_do_not():
    _, params, buffers = flatten_module(Noisy(nnx.Rngs(0)))
    assert set(params) == {"linear/kernel", "norm/scale", "norm/bias"}
    assert {"norm/mean", "norm/var"} < set(buffers)
    _, params, buffers = flatten_module(Listed(nnx.Rngs(0)))
    assert set(params) == {"layers/0/kernel", "layers/0/bias", "layers/1/kernel", "layers/1/bias"}
    assert set(buffers) == {"calls"}


def test_a_tied_weight_is_one_weight_and_stays_tied():
    skeleton, params, buffers = flatten_module(Listed(nnx.Rngs(0)))
    module = skeleton.assemble({**params, "layers/1/kernel": jnp.zeros((WIDTH, WIDTH))}, buffers)
    assert module.tied is module.layers[1].kernel
    assert not np.any(module.tied[...])


def test_random_keys_travel_as_plain_data_and_draw_the_same_numbers():
    module = Noisy(nnx.Rngs(3))
    skeleton, params, buffers = flatten_module(module)
    assert skeleton.keys
    assert all(buffers[path].dtype == jnp.uint32 for path in skeleton.keys)
    x = np.random.default_rng(0).normal(size=(4, IN)).astype(np.float32)
    np.testing.assert_array_equal(skeleton.assemble(params, buffers)(x)["features"], module(x)["features"])


def test_dim_names_come_from_the_initializers_and_stacked_layers_lead_with_theirs():
    skeleton, params, _ = flatten_module(Tower(nnx.Rngs(0), layers=4))
    assert skeleton.dims == {"layers/kernel": ("layers", "embed", "mlp"), "out/kernel": ("embed", "vocab")}
    assert params["layers/kernel"].shape == (4, WIDTH, WIDTH)


def test_shapes_are_taken_apart_as_arrays_are():
    concrete, abstract = Noisy(nnx.Rngs(0)), nnx.eval_shape(lambda: Noisy(nnx.Rngs(0)))
    (skeleton, params, buffers), (shapes_of, *shapes) = flatten_module(concrete), flatten_module(abstract)
    assert shapes_of.paths == skeleton.paths
    assert shapes_of.keys == skeleton.keys
    for arrays, avals in zip((params, buffers), shapes, strict=True):
        assert {p: (a.shape, a.dtype) for p, a in avals.items()} == {p: (a.shape, a.dtype) for p, a in arrays.items()}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"Odd: odd holds 3; make it an array, jnp.asarray\(3\)"),
        ({"a": jnp.ones(1), "b": jnp.ones(1)}, "Odd: every nnx.Variable must hold exactly one array"),
    ],
)
def test_a_variable_that_is_not_one_array_is_refused(value, message):
    class Odd(nnx.Module):
        def __init__(self):
            self.odd = nnx.Variable(value)

    with pytest.raises(GraphError, match=message):
        flatten_module(Odd())
