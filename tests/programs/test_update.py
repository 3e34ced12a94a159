import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.meshes import Layout, Placement
from hetjax.optimizers.coupling import make_layerwise
from hetjax.optimizers.module_weights import module_weights
from hetjax.programs.update import Update, sum_of_squares
from hetjax.stages.cut import cut_graph
from hetjax.stages.stage import Stage
from tests.harness.small_modules import Encoder, Tower

GRAPH = ModuleGraph({"encoder": Encoder, "tower": Tower}, [Edge("encoder.features", "tower.features")])
LAYOUTS = {"encoder": Layout(devices="0-3", data=4), "tower": Layout(devices="4-7", fsdp=2, tensor=2)}


@functools.cache
def make_stages(param_dtype: str = "float32", compute_dtype: str | None = None) -> dict[str, Stage]:
    stages = cut_graph(
        GRAPH,
        Placement(LAYOUTS).resolve(8),
        devices=jax.devices(),
        frozen=(),
        param_dtype=param_dtype,
        compute_dtype=compute_dtype,
    )
    return {stage.name: stage for stage in stages}


def make_update(optimizer, module: str = "tower", *, scale: float = 1.0, max_grad_norm: float | None = None) -> Update:
    layerwise, _ = make_layerwise(module, optimizer, module_weights(GRAPH, [make_stages()[module]]), scale=scale)
    return Update(make_stages()[module], layerwise, max_grad_norm=max_grad_norm)


def random_arrays(module: str, seed: int, size: float = 1.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        path: (size * random.normal(size=aval.shape)).astype(np.float32)
        for path, aval in make_stages()[module].params.items()
    }


def put(module: str, arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return {path: jax.device_put(arrays[path], aval.sharding) for path, aval in make_stages()[module].params.items()}


def run(update: Update, params, gradients, square_sum: float, *, steps: int = 2):
    """Weights after some steps with the same gradient."""
    module = update.stage.name
    update.compile()
    params, gradients = put(module, params), put(module, gradients)
    opt_state = update.init(params)
    norm = jax.device_put(np.float32(square_sum), update.stage.replicated)
    for _ in range(steps):
        params, opt_state = update.update(params, opt_state, gradients, norm)
    return params, opt_state


def run_plainly(optimizer, params, gradients, *, steps: int = 2):
    opt_state = optimizer.init(params)
    for _ in range(steps):
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(found, expected) -> None:
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=2e-6, atol=2e-7, err_msg=path)


def square_sum(*trees) -> float:
    return float(sum(np.sum(np.square(leaf, dtype=np.float64)) for tree in trees for leaf in tree.values()))


def test_moments_are_laid_out_as_their_weights_and_counters_are_copied():
    update = make_update(optax.adamw(1e-3))
    params, opt_state = run(update, random_arrays("tower", 0), random_arrays("tower", 1), 1.0, steps=1)
    adam = opt_state[0]
    for moments in (adam.mu, adam.nu):
        for path, moment in moments.items():
            assert moment.sharding.is_equivalent_to(params[path].sharding, moment.ndim), path
            assert moment.addressable_shards[0].data.nbytes == params[path].addressable_shards[0].data.nbytes
    assert params["layers/kernel"].addressable_shards[0].data.size == params["layers/kernel"].size // 4
    assert adam.count.sharding.is_fully_replicated


def test_factored_moments_of_other_shapes_than_their_weight_are_copied():
    """Adafactor keeps row and column sums of each layer in place of a second moment: no spec of a weight fits them."""
    optimizer = optax.adafactor(1e-2, min_dim_size_to_factor=4)
    params, gradients = random_arrays("tower", 0), random_arrays("tower", 1)
    found, opt_state = run(make_update(optimizer), params, gradients, 1.0)
    layers = [(each.pop("layers/kernel"), each) for each in (dict(params), dict(gradients))]
    (kernels, params), (kernel_gradients, gradients) = layers
    apart = [{**own, **{f"layers/{i}": x for i, x in enumerate(kernel)}} for own, kernel in
             ((params, kernels), (gradients, kernel_gradients))]  # fmt: skip
    expected = run_plainly(optimizer, *apart)
    assert_close(found, {path: expected[path] for path in params})
    assert_close(dict(enumerate(found["layers/kernel"])), {i: expected[f"layers/{i}"] for i in range(len(kernels))})
    factored = [leaf for leaf in jax.tree.leaves(opt_state) if leaf.shape == (4, 8)]
    assert factored
    assert all(leaf.sharding.is_fully_replicated for leaf in factored)


def test_learning_rate_scale_scales_decoupled_weight_decay_too():
    params, gradients = random_arrays("tower", 0), random_arrays("tower", 1)
    found, _ = run(make_update(optax.adamw(1e-2, weight_decay=0.3), scale=0.25), params, gradients, 1.0)
    assert_close(found, run_plainly(optax.adamw(0.25e-2, weight_decay=0.3), params, gradients))


def test_a_learning_rate_scale_of_zero_leaves_the_weights_as_they_are():
    params, gradients = random_arrays("tower", 0), random_arrays("tower", 1)
    found, _ = run(make_update(optax.adamw(1e-2, weight_decay=0.3), scale=0.0), params, gradients, 1.0)
    for path, value in params.items():
        np.testing.assert_array_equal(found[path], value)


@pytest.mark.parametrize("size", [10.0, 1e-3, 0.0], ids=["above", "below", "zero"])
def test_clipping_over_all_modules_equals_optax_on_their_joint_gradient(size):
    optimizer = optax.sgd(0.1)
    params = {module: random_arrays(module, 0) for module in LAYOUTS}
    gradients = {module: random_arrays(module, 1, size) for module in LAYOUTS}
    total = square_sum(*gradients.values())
    clipped, _ = optax.clip_by_global_norm(1.0).update(gradients, optax.EmptyState())
    for module in LAYOUTS:
        found, _ = run(make_update(optimizer, module, max_grad_norm=1.0), params[module], gradients[module], total)
        assert_close(found, run_plainly(optimizer, params[module], clipped[module]))


def test_without_a_limit_the_norm_has_no_effect():
    params, gradients = random_arrays("tower", 0), random_arrays("tower", 1)
    found, _ = run(make_update(optax.sgd(0.1)), params, gradients, 1e12)
    assert_close(found, run_plainly(optax.sgd(0.1), params, gradients))


def test_the_sum_of_squares_counts_each_weight_once_however_many_copies_there_are():
    gradients = random_arrays("encoder", 1)
    update = make_update(optax.sgd(0.1), "encoder").compile()
    _, found = update.reduce(put("encoder", gradients))
    assert found.sharding.is_fully_replicated
    np.testing.assert_allclose(float(found), square_sum(gradients), rtol=1e-6)


def test_prepare_casts_weights_once_and_makes_gradients_of_zero_in_the_master_dtype():
    stage = make_stages("float32", "bfloat16")["tower"]
    layerwise, _ = make_layerwise("tower", optax.sgd(0.1), module_weights(GRAPH, [stage]))
    update = Update(stage, layerwise, max_grad_norm=None).compile()
    params = {path: jax.device_put(np.ones(a.shape, "float32"), a.sharding) for path, a in stage.params.items()}
    compute, zeros = update.prepare(params)
    for path, param in params.items():
        assert compute[path].dtype == jnp.bfloat16
        assert zeros[path].dtype == jnp.float32
        assert not np.any(zeros[path])
        for made in (compute[path], zeros[path]):
            assert made.sharding.is_equivalent_to(param.sharding, param.ndim)


def test_prepare_keeps_the_very_weights_where_no_cast_is_asked_for():
    update = make_update(optax.sgd(0.1)).compile()
    params = put("tower", random_arrays("tower", 0))
    compute, _ = update.prepare(params)
    assert all(compute[path] is param for path, param in params.items())


def test_an_update_reuses_the_memory_of_weights_and_optimizer_state():
    update = make_update(optax.adamw(1e-3)).compile()
    params = put("tower", random_arrays("tower", 0))
    opt_state = update.init(params)
    norm = jax.device_put(np.float32(1), update.stage.replicated)
    update.update(params, opt_state, put("tower", random_arrays("tower", 1)), norm)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, opt_state)))


def test_a_frozen_module_has_no_update_and_no_optimizer_state():
    trainer = Trainer(GRAPH, Placement(LAYOUTS), optimizer=optax.adamw(1e-3), frozen=("encoder",))
    assert set(trainer.updates) == {"tower"}
    assert trainer.init().stages["encoder"].opt_state is None


def test_a_stage_without_weights_adds_nothing_to_the_norm():
    found = sum_of_squares({}, make_update(optax.sgd(0.1)).norm_dtype)
    assert found.dtype == np.float32
    assert found == 0
