"""A mixture of experts against a loop over experts in float64: values, gradients, and what moves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from models.dims import Splits, layout_in_force
from models.parts.moe import MoE, MoEConfig
from models.parts.zigzag import SequenceOrder

BATCH, SEQ, WIDTH, HIDDEN = 8, 4, 6, 10
PLAIN = MoEConfig(count=8, top_k=3)
NEMOTRON = MoEConfig(
    count=8, top_k=3, activation="relu2", shared_width=12, scores="sigmoid", factor=2.5, bias_rate=1e-3,
    balance_loss=1e-2,
)  # fmt: skip
CONFIGS = {
    "softmax": PLAIN,
    "nemotron": NEMOTRON,
    "as scored": dataclasses.replace(PLAIN, normalize=False, factor=1.5),
    "one expert": dataclasses.replace(NEMOTRON, top_k=1),
    "all experts": dataclasses.replace(PLAIN, top_k=8, balance_loss=1e-2),
    "capacity": dataclasses.replace(NEMOTRON, capacity_factor=0.7),
}
AXES = {"batch": ("data", "expert"), "seq": ("context",), "experts": ("expert",), "mlp": ("tensor",)}
LAYOUTS = {
    "expert8": dict(expert=8),
    "expert4-tensor2": dict(expert=4, tensor=2),
    "data2-expert2-context2": dict(data=2, expert=2, context=2),
    "data4-tensor2": dict(data=4, tensor=2),
}


@functools.cache
def model_of(config: MoEConfig, dtype="float64") -> MoE:
    """Weights, and a bias that changes what is chosen."""
    rng = np.random.default_rng(5)
    with nnx.use_eager_sharding(False):
        definition, shapes = nnx.split(nnx.eval_shape(lambda: MoE(WIDTH, HIDDEN, config, rngs=nnx.Rngs(0))))

    def draw(leaf):
        if leaf.dtype == jnp.int32:
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(rng.normal(size=leaf.shape) * 0.4, dtype if len(leaf.shape) > 1 else "float32")

    return nnx.merge(definition, jax.tree.map(draw, shapes))


def inputs(dtype="float64"):
    rng = np.random.default_rng(6)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in ((BATCH, SEQ, WIDTH), (BATCH, SEQ, WIDTH)))


def loop_over_experts(model: MoE, x):
    """(output, balance) from every expert run on every token, with masks; nothing of the parts is used."""
    config, bias = model.config, 0 if model.router.bias is None else model.router.bias[...]
    logits = x @ model.router.kernel[...]
    scores = jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)
    if config.scores == "sigmoid":
        scores = 1 / (1 + jnp.exp(-logits))
    # The rank of each expert in a token's preference, by counting those that are preferred to it.
    preference = scores + bias
    rank = (preference[..., None, :] > preference[..., :, None]).sum(-1)
    chosen = rank < config.top_k
    weights = jnp.where(chosen, scores, 0)
    weights = config.factor * (weights / weights.sum(-1, keepdims=True) if config.normalize else weights)
    share = scores / scores.sum(-1, keepdims=True)
    balance = (share.sum(1) * chosen.sum(1)).sum(-1) * config.balance_loss * config.count
    balance = balance / (config.top_k * x.shape[1] ** 2)
    if config.capacity_factor is not None:
        most = np.ceil(config.capacity_factor * x.shape[1] * config.top_k / config.count)
        weights = jnp.where(jnp.cumsum(chosen, axis=1) <= most, weights, 0)
    y = jnp.zeros_like(x)
    for e in range(config.count):
        y += weights[..., e, None] * expert(
            x, None if model.gate is None else model.gate[e], model.up[e], model.down[e]
        )
    if model.shared is not None:
        gate = None if model.gate is None else model.shared.gate.kernel[...]
        y += expert(x, gate, model.shared.up.kernel[...], model.shared.down.kernel[...])
    return y, balance if config.balance_loss else None


def expert(x, gate, up, down):
    if gate is None:
        return jnp.maximum(x @ up, 0) ** 2 @ down
    return ((x @ gate) / (1 + jnp.exp(-(x @ gate))) * (x @ up)) @ down


def splits(degrees: dict[str, int]) -> Splits:
    shape = {axis: degrees.get(axis, 1) for axis in ("data", "expert", "context", "tensor")}
    count = int(np.prod(list(shape.values())))
    mesh = Mesh(np.array(jax.devices()[:count]).reshape(*shape.values()), tuple(shape))
    axes_of = lambda dim: tuple(axis for axis in AXES.get(dim, ()) if shape[axis] > 1)  # noqa: E731
    return Splits(mesh=mesh, axes_of=axes_of)


def in_force(split: Splits | None):
    if split is None:
        return layout_in_force(lambda x, dims: x)
    spec = lambda dims: P(*[split.axes_of(dim or "") or None for dim in dims])  # noqa: E731
    return layout_in_force(
        lambda x, dims: jax.lax.with_sharding_constraint(x, NamedSharding(split.mesh, spec(dims))), split
    )


def value_and_gradients(function, model, arrays):
    """(output, balance, gradients of x and of every weight) of sum(weight * output) + sum(balance)."""
    definition, params, rest = nnx.split(model, nnx.Param, ...)
    x, weight = arrays

    def total(x, params, rest):
        y, balance = function(nnx.merge(definition, params, rest, copy=True), x)
        return jnp.sum(y * weight) + (0 if balance is None else jnp.sum(balance)), (y, balance)

    (_, outputs), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(x, params, rest)
    return outputs, gradients


def largest_error(got, want) -> float:
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(float(np.abs(np.asarray(g) - np.asarray(w)).max() / np.abs(np.asarray(w)).max()) for g, w in pairs)


def compare(config: MoEConfig, split: Splits | None, *, dtype="float64") -> float:
    """The largest relative error of output, balance loss and any gradient."""
    order = SequenceOrder(length=SEQ, shards=1 if split is None else split.mesh.shape["context"])
    back = np.argsort(order.rows)

    def ours(model, x):
        y, balance = model(x[:, order.rows], order=order)
        return y[:, back], balance

    def run(model, arrays):
        with in_force(split):
            return value_and_gradients(ours, model, arrays)

    got = jax.jit(run)(model_of(config, dtype), inputs(dtype))
    want = jax.jit(lambda m, a: value_and_gradients(loop_over_experts, m, a))(model_of(config), inputs())
    return largest_error(got, want)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_device_equals_a_loop_over_experts(float64, name):
    assert compare(CONFIGS[name], None) < 1e-12


@pytest.mark.parametrize("name", ["softmax", "nemotron", "capacity"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_equal_a_loop_over_experts(float64, layout, name):
    assert compare(CONFIGS[name], splits(LAYOUTS[layout])) < 1e-12
