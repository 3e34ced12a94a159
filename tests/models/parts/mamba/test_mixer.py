"""A Mamba-2 layer against numpy row by row: training, packed documents, and generation from a cache."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hetjax.models.arrays import arrays_by_path
from hetjax.models.errors import LayoutError, ModelError
from hetjax.models.parallel.zigzag_order import SequenceOrder
from hetjax.models.parts.mamba import Mamba2, MambaCache, MambaConfig
from tests.harness.models import mamba_stepwise as stepwise
from tests.harness.models.mamba_layer import CONFIG, WIDTH, build, call, error, rows, weights_of

CONFIGS = {
    "plain": CONFIG,
    "one group, long convolution": dataclasses.replace(CONFIG, groups=1, conv_kernel=6),
    "a group a head, least step": dataclasses.replace(CONFIG, groups=4, min_dt=0.9, chunk=128),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_layer_equals_numpy_row_by_row(float64, config, packed):
    layer, x = build(config), rows(2, 11)
    segments = stepwise.documents(np.random.default_rng(4), 2, 11) if packed else None
    y, cache = call(layer, jnp.asarray(x), segments=segments)
    assert cache is None
    assert error(y, stepwise.mixer(weights_of(layer), config, x, segments)) < 1e-12


def test_packed_documents_equal_each_alone(float64):
    layer, x = build(), jnp.asarray(rows(1, 13))
    ends = [0, 3, 4, 9, 13]
    segments = jnp.asarray(np.repeat([[1, 2, 1, 9]], np.diff(ends), axis=1))
    packed, _ = call(layer, x, segments=segments)
    for start, end in itertools.pairwise(ends):
        assert error(packed[:, start:end], call(layer, x[:, start:end])[0]) < 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 1e-5), (np.float64, 1e-10)])
@pytest.mark.parametrize("longest", [1, 2, 9])
def test_generation_from_a_cache_equals_the_whole_sequence(float64, longest, dtype, bound):
    """Prompts of unlike lengths, padded at their ends with rows that would show; shorter than the convolution, too."""
    layer, x = build(dtype=dtype), np.asarray(rows(3, longest + 5), dtype)
    lengths = np.array([longest, max(longest - 1, 1), max(longest // 2, 1)])
    prompts = np.where((np.arange(longest) < lengths[:, None])[..., None], x[:, :longest], dtype(1e3))
    want = np.asarray(call(layer, jnp.asarray(x))[0])
    y, cache = call(layer, jnp.asarray(prompts), cache=MambaCache.empty(CONFIG, 3, dtype), lengths=lengths)
    y = np.asarray(y)
    for sample, length in enumerate(lengths):
        assert error(y[sample, :length], want[sample, :length]) < bound
    assert np.isfinite(y).all()
    for offset in range(5):
        own = np.arange(3), lengths + offset
        y, cache = call(layer, jnp.asarray(x[own][:, None]), cache=cache)
        assert error(np.asarray(y)[:, 0], want[own]) < bound
    assert cache.state.dtype == cache.conv.x.dtype == dtype


def test_a_long_prompt_may_come_in_pieces(float64):
    layer, x = build(), jnp.asarray(rows(2, 12))
    want, cache = call(layer, x)[0], MambaCache.empty(CONFIG, 2, np.float64)
    pieces = []
    for start, end in ((0, 5), (5, 6), (6, 8), (8, 12)):
        y, cache = call(layer, x[:, start:end], cache=cache)
        pieces.append(y)
    assert error(jnp.concatenate(pieces, axis=1), want) < 1e-12


def test_a_prompt_without_rows_leaves_the_cache_as_it_is(float64):
    layer, empty = build(), MambaCache.empty(CONFIG, 2, np.float64)
    _, cache = call(layer, jnp.asarray(rows(2, 3)), cache=empty)
    _, after = call(layer, jnp.asarray(rows(2, 4, seed=9)), cache=cache, lengths=np.array([0, 4]))
    _, step = call(layer, jnp.asarray(rows(2, 1, seed=9)), cache=cache, lengths=np.array([0, 1]))
    for old, new, stepped in zip(*map(jax.tree.leaves, (cache, after, step)), strict=True):
        np.testing.assert_array_equal(old[0], new[0])
        np.testing.assert_array_equal(old[0], stepped[0])
        assert (old[1] != new[1]).any()


def test_a_cache_has_the_dims_that_it_names():
    for layers in (None, 3):
        empty = MambaCache.empty(CONFIG, 2, jnp.bfloat16, layers=layers)
        names = MambaCache.dims(layers=layers is not None)
        sizes = {"layers": 3, "batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 3}
        for array, dims in zip(jax.tree.leaves(empty), (*names.conv, names.state), strict=True):
            assert len(dims) == array.ndim
            assert all(sizes[dim] == size for dim, size in zip(dims, array.shape, strict=True) if dim)
        assert (empty.conv.x.dtype, empty.state.dtype) == (jnp.bfloat16, jnp.float32)


def test_bfloat16_weights_give_bfloat16_close_to_float64(float64):
    layer = build(dtype=jnp.bfloat16)
    x = jnp.asarray(rows(2, 40), jnp.bfloat16)
    y, _ = call(layer, x)
    assert y.dtype == jnp.bfloat16
    want = stepwise.mixer(weights_of(layer), CONFIG, np.asarray(x, np.float64))
    difference = np.asarray(y, np.float64) - want
    assert np.sqrt((difference**2).mean() / (want**2).mean()) < 2e-2


def test_initial_heads_forget_at_the_rates_of_the_paper():
    config = dataclasses.replace(CONFIG, heads=400)
    with nnx.use_eager_sharding(False):
        layer = Mamba2(WIDTH, config, rngs=nnx.Rngs(0))
    a, dt = np.exp(layer.A_log[...]), np.logaddexp(0, np.asarray(layer.dt_bias[...], np.float64))
    assert a.min() >= 1 and a.max() <= 16 and a.mean() == pytest.approx(8.5, rel=0.1)
    assert dt.min() >= 0.9e-3 and dt.max() <= 0.11
    assert np.log10(dt).mean() == pytest.approx(-2, abs=0.1) and np.log10(dt).std() == pytest.approx(0.577, rel=0.1)
    assert (layer.D[...] == 1).all()


def test_weights_have_the_parameters_of_the_released_layer():
    config = MambaConfig(heads=64, head_dim=64, groups=8, state=128)
    with nnx.use_eager_sharding(False):
        layer = nnx.eval_shape(lambda: Mamba2(2688, config, rngs=nnx.Rngs(0)))
    count = sum(array.size for array in arrays_by_path(layer).values())
    assert count == 2688 * 10304 + 6144 * 5 + 3 * 64 + 4096 + 4096 * 2688
    assert config.multiplications(2688) == 2688 * 10304 + 4096 * 2688


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"groups": 3}, r"heads % groups = 4 % 3 = 1 must be 0"),
        ({"heads": 0}, r"heads = 0 must be positive"),
        ({"conv_kernel": 1}, r"conv_kernel = 1 must be 2 or more"),
        ({"min_dt": -0.1}, r"min_dt = -0\.1 must not be negative"),
    ],
)
def test_sizes_that_make_no_layer_are_refused(change, said):
    with pytest.raises(ModelError, match=said):
        dataclasses.replace(CONFIG, **change)


def test_an_order_for_other_shards_is_refused():
    with pytest.raises(LayoutError, match="the order of positions is for 2 shards, but the layout in force has 1"):
        build(dtype=np.float32)(jnp.zeros((1, 8, WIDTH)), order=SequenceOrder(length=8, shards=2))
