"""Grouped products, in each way in which they are computed, against a loop over the groups."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jax.experimental.pallas import mosaic_gpu

from hetjax.models.kernels import block_products, hopper_products
from hetjax.models.kernels.expert_places import find_places
from hetjax.models.kernels.grouped_experts import ExpertKernels, ExpertSlots, grouped_experts, grouped_experts_backward
from hetjax.models.kernels.grouped_products import GroupedProducts, choose_method
from hetjax.models.kernels.hopper_products import can_multiply

TOKENS, SLOTS, WIDTH, HIDDEN, EXPERTS = 70, 3, 64, 40, 5


@pytest.fixture(params=["blocks", "blocks in a loop", "ragged_dot"])
def method(request, monkeypatch):
    """A way to compute products."""
    if request.param == "blocks in a loop":
        monkeypatch.setattr(block_products, "_GATHERED", 0)
    return request.param.split()[0]


def problem():
    """Some slots are empty, an expert is not asked for, and there is room for a few slots more."""
    random = np.random.default_rng(3)
    experts = np.stack([random.permutation(EXPERTS + 2)[:SLOTS] for _ in range(TOKENS)])
    experts = np.where(experts == 2, EXPERTS, np.minimum(experts, EXPERTS)).astype(np.int32)

    def draw(*shape):
        return jnp.asarray(random.normal(size=shape) * 0.3, jnp.float32)

    kernels = ExpertKernels((draw(EXPERTS, WIDTH, HIDDEN), draw(EXPERTS, WIDTH, HIDDEN)), draw(EXPERTS, HIDDEN, WIDTH))
    slots = ExpertSlots(jnp.asarray(experts), draw(TOKENS, SLOTS))
    return kernels, draw(TOKENS, WIDTH), slots, draw(TOKENS, WIDTH)


def one_by_one(activation, experts, kernels, tokens, weights):
    """The sum over slots of weight * expert(token), each expert run on all tokens."""
    total = jnp.zeros(tokens.shape, tokens.dtype)
    for e in range(EXPERTS):
        first = [tokens @ kernel[e] for kernel in kernels.first]
        hidden = jax.nn.silu(first[0]) * first[1] if activation == "swiglu" else jnp.maximum(first[0], 0) ** 2
        total += jnp.where(experts == e, weights, 0).sum(axis=1)[:, None] * (hidden @ kernels.down[e])
    return total


@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_values_and_gradients_equal_experts_run_one_by_one(method, activation):
    kernels, tokens, slots, gradient = problem()
    if activation == "relu2":
        kernels = ExpertKernels(kernels.first[1:], kernels.down)
    rows = int((slots.experts < EXPERTS).sum()) + 9
    products = GroupedProducts(method=method, count=EXPERTS, rows=rows)

    @jax.jit
    def run(kernels, tokens, slots, gradient):
        y, first = grouped_experts(products, kernels, tokens, slots, activation)
        return y, grouped_experts_backward(products, kernels, tokens, slots, first, gradient, activation)

    got = run(kernels, tokens, slots, gradient)
    want, vjp = jax.vjp(functools.partial(one_by_one, activation, slots.experts), kernels, tokens, slots.weights)
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves((want, vjp(gradient))), strict=True)
    errors = [float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs]
    assert max(errors) < 1e-5, errors


def test_the_kernel_for_hopper_interpreted_equals_ragged_dot(monkeypatch):
    """The transposed products and the gradient of weights cannot be interpreted (jax 0.10.2)."""
    few = types.SimpleNamespace(**vars(mosaic_gpu))
    options = {"grid": (2,), "interpret": InterpretGPUParams()}
    few.kernel = lambda *args, **given: mosaic_gpu.kernel(*args, **{**given, **options})
    monkeypatch.setattr(hopper_products._kernels().ragged, "plgpu", few)
    random = np.random.default_rng(0)
    x, kernel = (jnp.asarray(random.normal(size=size), jnp.bfloat16) for size in ((256, 64), (4, 64, 64)))
    sizes = jnp.asarray([50, 0, 130, 20], jnp.int32)
    want = jax.lax.ragged_dot(x, kernel, sizes)
    got = hopper_products.hopper_product(x, kernel, sizes, transposed=False)
    np.testing.assert_allclose(np.float32(got[:200]), np.float32(want[:200]), rtol=0.01, atol=0.01)


def test_places_of_an_expert_begin_at_a_block_and_hold_its_slots_in_order():
    experts = jnp.asarray([[2, 0], [0, 3], [2, 1], [0, 2]], jnp.int32)
    places = find_places(experts, 3, 16, 4)
    assert places.sizes.tolist() == [3, 1, 3]
    assert np.flatnonzero(places.filled).tolist() == [0, 1, 2, 4, 8, 9, 10]
    assert places.slot[places.filled[:, 0]].tolist() == [1, 2, 6, 5, 0, 4, 7]
    assert places.place[places.asked].tolist() == [8, 0, 1, 9, 4, 2, 10]


@pytest.mark.parametrize("rows", [1, 40, 1000, 98304])
@pytest.mark.parametrize("count", [1, 4, 128])
def test_blocks_hold_all_rows_however_they_are_spread_and_few_more(rows, count):
    products = GroupedProducts(method="blocks", count=count, rows=rows)
    random = np.random.default_rng(rows + count)
    for spread in (np.eye(count)[0], np.ones(count) / count, random.dirichlet(np.full(count, 0.3))):
        blocks = -(random.multinomial(rows, spread) // -products.block)
        assert blocks.sum() * products.block <= products.places
    assert products.places <= max(1.25 * rows, rows + 8 * count)


def device(platform: str, capability: str = ""):
    return types.SimpleNamespace(platform=platform, compute_capability=capability)


@pytest.mark.parametrize(
    ("dtype", "width", "on", "method"),
    [
        ("bfloat16", 2688, device("gpu", "9.0"), "hopper"),
        ("float32", 2688, device("gpu", "9.0"), "blocks"),
        ("bfloat16", 2700, device("gpu", "9.0"), "blocks"),
        ("bfloat16", 2688, device("gpu", "8.0"), "blocks"),
        ("bfloat16", 2688, device("cpu"), "blocks"),
        ("bfloat16", 2688, device("tpu"), "ragged_dot"),
    ],
)
def test_each_device_multiplies_in_its_own_way(dtype, width, on, method):
    assert choose_method(jnp.dtype(dtype), width, on) == method


def test_without_the_packages_that_they_import_there_are_no_kernels(monkeypatch):
    monkeypatch.setattr(hopper_products, "_kernels", lambda: None)
    assert not can_multiply(jnp.dtype("bfloat16"), device("gpu", "9.0"))
