"""A mixture of experts against a loop over experts in float64: values, gradients, and what moves."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.compilation.hlo import collectives
from hetjax.models.errors import LayoutError, ModelError
from hetjax.models.parallel import expert_sharding
from hetjax.models.parallel.layout_in_force import Splits, layout_in_force
from hetjax.models.parallel.token_rounds import Rooms
from hetjax.models.parallel.zigzag_order import SequenceOrder
from hetjax.models.parts.moe import MoE, MoEConfig
from tests.harness.choices import others_slow

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
GPU = types.SimpleNamespace(platform="gpu", compute_capability="8.0")
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


def in_force(split: Splits | None, device=None):
    if split is None:
        return layout_in_force(lambda x, dims: x, device=device)
    spec = lambda dims: P(*[split.axes_of(dim or "") or None for dim in dims])  # noqa: E731
    return layout_in_force(
        lambda x, dims: jax.lax.with_sharding_constraint(x, NamedSharding(split.mesh, spec(dims))), split, device
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


def compare(config: MoEConfig, split: Splits | None, *, dtype="float64", device=None, preferred=None) -> float:
    """The largest relative error of output, balance loss and any gradient."""
    order = SequenceOrder(length=SEQ, shards=1 if split is None else split.mesh.shape["context"])
    back = np.argsort(order.positions)

    def ours(model, x):
        y, balance = model(x[:, order.positions], order=order)
        return y[:, back], balance

    def run(model, arrays):
        with in_force(split, device):
            return value_and_gradients(ours, model, arrays)

    got = jax.jit(run)(preferring(model_of(config, dtype), preferred), inputs(dtype))
    return largest_error(got, wanted(config, preferred))


@functools.cache
def wanted(config: MoEConfig, preferred: tuple[float, ...] | None):
    """What the loop over experts gives, in float64."""
    model = preferring(model_of(config), preferred)
    return jax.jit(lambda m, a: value_and_gradients(loop_over_experts, m, a))(model, inputs())


def preferring(model: MoE, bias: tuple[float, ...] | None) -> MoE:
    """A copy of the model with a bias for the choice of experts; without, the model."""
    if bias is None:
        return model
    model = nnx.merge(*nnx.split(model), copy=True)
    model.router.bias[...] = jnp.asarray(bias, jnp.float32)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_one_device_equals_a_loop_over_experts(float64, name):
    assert compare(CONFIGS[name], None) < 1e-12


PLACED = [(layout, name) for layout in LAYOUTS for name in ("softmax", "nemotron", "capacity")]
# Each layout and each kind of experts.
QUICK_PLACED = [
    ("expert8", "softmax"), ("expert4-tensor2", "nemotron"), ("data2-expert2-context2", "capacity"),
    ("data4-tensor2", "nemotron"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "name"), others_slow(PLACED, QUICK_PLACED))
def test_layouts_equal_a_loop_over_experts(float64, layout, name):
    assert compare(CONFIGS[name], splits(LAYOUTS[layout])) < 1e-12


def test_float32_equals_a_loop_over_experts(float64):
    assert compare(NEMOTRON, splits(LAYOUTS["expert4-tensor2"]), dtype="float32") < 1e-5


def test_bfloat16_stays_and_scores_are_float32():
    model, x = model_of(NEMOTRON, "bfloat16"), inputs("bfloat16")[0]
    y, balance = jax.eval_shape(lambda x: nnx.merge(*nnx.split(model), copy=True)(x), x)
    assert (y.dtype, balance.dtype) == (jnp.bfloat16, jnp.float32)
    assert jax.eval_shape(lambda x: model.router(x, training=False), x).weights.dtype == jnp.float32


def loss_and_gradients(split: Splits, model, arrays, device=None):
    with in_force(split, device):
        return value_and_gradients(lambda model, x: model(x), model, arrays)


def test_no_row_reaches_an_expert_beyond_its_capacity(float64):
    """With a capacity of one row a sequence, a token's result may only change by what the rows ahead of it chose."""
    config = dataclasses.replace(PLAIN, capacity_factor=0.5)
    assert [config.capacity(rows) for rows in (4, 16, 17)] == [1, 3, 4]
    model, x = model_of(config), inputs()[0]
    run = jax.jit(lambda model, x, training: model(x, training=training), static_argnums=2)
    y, _ = run(model, x, True)
    free, _ = run(model_of(PLAIN), x, True)
    generated, _ = run(model, x, False)
    np.testing.assert_allclose(y[:, 0], free[:, 0], rtol=1e-9)
    assert (np.abs(y[:, 1:] - free[:, 1:]).max(axis=-1) > 1e-3).sum() > BATCH
    np.testing.assert_array_equal(generated, free)


def test_a_capacity_makes_buffers_of_tokens_smaller():
    text = lambda config: (  # noqa: E731
        jax.jit(lambda *args: loss_and_gradients(splits({"expert": 4}), *args))
        .lower(model_of(config, "float32"), inputs("float32"))
        .compile()
        .as_text()
    )
    largest = [
        max(each.result_bytes for each in collectives(text(config)) if each.kind == "all-to-all")
        for config in (PLAIN, dataclasses.replace(PLAIN, capacity_factor=0.5))
    ]
    rows = BATCH // 4 * SEQ
    # 4 peers, each with room for all 8 own rows; with one row a sequence and expert, for 2 sequences * 2 experts.
    assert largest == [4 * rows * WIDTH * 4, 4 * 4 * WIDTH * 4]


@pytest.fixture
def ragged(monkeypatch):
    """Programs as of a backend with `ragged_all_to_all`, which is put together here as its documentation says."""
    calls = []

    def emulated(operand, output, starts, sent, there, got, *, axis_name):
        calls.append(operand.shape)
        me, row = jax.lax.axis_index(axis_name), jnp.arange(output.shape[0])
        rows, starts, sent, there = (jax.lax.all_gather(x, axis_name) for x in (operand, starts, sent, there))
        for peer in range(rows.shape[0]):
            offset = row - there[peer, me]
            arrives = (offset >= 0) & (offset < sent[peer, me])
            new = rows[peer, jnp.clip(starts[peer, me] + offset, 0, rows.shape[1] - 1)]
            output = jnp.where((arrives & (sent[peer, me] == got[peer]))[:, None], new, output)
        return output

    monkeypatch.setattr(jax.lax, "ragged_all_to_all", emulated)
    return calls


@pytest.mark.parametrize("name", ["nemotron", "one expert", "capacity"])
def test_ragged_exchange_equals_a_loop_over_experts(float64, ragged, name):
    assert compare(CONFIGS[name], splits(LAYOUTS["expert4-tensor2"]), device=GPU) < 1e-12
    assert len(ragged) == 7


@pytest.mark.parametrize(("platform", "dense", "ragged"), [("cpu", 7, 0), ("gpu", 0, 7), ("tpu", 0, 7)])
def test_each_platform_gets_the_exchange_that_it_has(platform, dense, ragged):
    """Rows travel four times, forward and backward; numbers, weights and gradients of weights once each."""
    device = types.SimpleNamespace(platform=platform)
    traced = jax.jit(lambda *args: loss_and_gradients(splits({"expert": 4}), *args, device)).trace(
        model_of(PLAIN, "float32"), inputs("float32")
    )
    text = traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,)).as_text()
    assert text.count("@ragged_all_to_all") == ragged
    assert text.count("stablehlo.all_to_all") == dense


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(top_k=9), "top_k <= count must hold, but 9 > 8: a token takes each expert once at most"),
        (dict(top_k=0), "top_k = 0 must be 1 or more"),
        (dict(capacity_factor=0.0), "capacity_factor = 0.0 must be positive"),
        (dict(bias_rate=-1.0), "bias_rate = -1.0 must be 0 or more"),
        (dict(scores="tanh"), "scores = 'tanh'; choose softmax or sigmoid"),
    ],
)
def test_senseless_configs_are_refused(change, message):
    with pytest.raises(ModelError, match=message):
        dataclasses.replace(PLAIN, **change)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"experts": ("expert",)}, r"experts % expert = 6 % 4 = 2 must be 0"),
        ({"experts": ("tensor",), "mlp": ()}, r"experts ride on tensor, which splits neither batch \(data\*expert\)"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(axes, message):
    split = splits({"expert": 4, "tensor": 2} if "mlp" not in axes else {"data": 2, "expert": 2, "tensor": 2})
    split = dataclasses.replace(split, axes_of=lambda dim: axes.get(dim, AXES.get(dim, ()) if dim == "batch" else ()))
    config = dataclasses.replace(PLAIN, count=6)
    with pytest.raises(LayoutError, match=message), layout_in_force(lambda x, dims: x, split):
        model_of(config, "float32")(inputs("float32")[0])


# Most choices fall on the experts of one device of four, or all of them on three experts of two devices of four.
ROUTINGS = {"balanced": (0.0,) * 8, "skewed": (0.3, 0.3, 0, 0, 0, 0, 0, 0), "all to one": (9.0, 8.0, 7.0) + (0.0,) * 5}
IN_ROUNDS = [
    (layout, routing, exchange)
    for layout in ("expert4-tensor2", "data2-expert2-context2")
    for routing in ROUTINGS
    for exchange in ("dense", "ragged")
]
QUICK_ROUNDS = [("expert4-tensor2", "all to one", "dense"), ("data2-expert2-context2", "skewed", "ragged")]


@pytest.fixture
def small_rooms(monkeypatch):
    """Buffers for few slots; the sizes that were asked for."""
    asked = []

    def rooms(usual, worst, most, margin, devices):
        asked.append((usual, worst, most, devices))
        return Rooms(first=most + 3, further=most + 1, most=most)

    monkeypatch.setattr(expert_sharding, "rooms", rooms)
    return asked


@pytest.mark.parametrize(("layout", "routing", "exchange"), others_slow(IN_ROUNDS, QUICK_ROUNDS))
def test_in_rounds_they_equal_a_loop_over_experts(float64, small_rooms, ragged, layout, routing, exchange):
    """Values and all gradients, whichever experts are asked for: none has room for more than a few tokens a round."""
    device = GPU if exchange == "ragged" else None
    assert compare(NEMOTRON, splits(LAYOUTS[layout]), device=device, preferred=ROUTINGS[routing]) < 1e-12
    assert bool(ragged) == (exchange == "ragged") and small_rooms
