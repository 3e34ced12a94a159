"""A Mamba-2 layer over several devices against one device in float64, and what moves between them."""

import dataclasses
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from hetjax.compilation.hlo import collectives
from hetjax.meshes import Layout, PlacementError
from hetjax.models.arrays import arrays_by_path
from hetjax.models.dims import RESIDUAL
from hetjax.models.errors import LayoutError
from hetjax.models.kernels.causal_conv import Streams
from hetjax.models.parallel.layout_in_force import layout_in_force
from hetjax.models.parallel.mamba_context import context_parallel_mamba
from hetjax.models.parallel.zigzag_order import SequenceOrder, causal_order
from hetjax.programs.data_shards import by_shard, merge, split
from hetjax.stages.flat_state import flatten_module
from tests.harness.models.arrays import with_arrays
from tests.harness.models.layouts import constraint_of, splits_of
from tests.harness.models.mamba_layer import CONFIG, WIDTH, build, error, rows
from tests.harness.models.mamba_stepwise import documents

BATCH = 4
LAYOUTS = {
    "context4": dict(context=4),
    "data2-context2-tensor2": dict(data=2, context=2, tensor=2),
    "context3-tensor2": dict(context=3, tensor=2, sequence_parallel=False),
    "fsdp2-expert2-context2": dict(fsdp=2, expert=2, context=2),
    "data2-tensor2": dict(data=2, tensor=2),
}


def with_gradients(run, layer, x, weight):
    """(y, gradients of all weights and of x)."""
    y, vjp = jax.vjp(lambda arrays, x: run(with_arrays(layer, arrays), x), arrays_by_path(layer), x)
    return y, vjp(weight)


def across(layout: Layout, layer, x, segments):
    """The layer under a layout; rows go into the order of the devices and back."""
    with layout_in_force(constraint_of(layout), splits_of(layout)):
        order = causal_order(x.shape[1])
        segments = None if segments is None else segments[:, order.positions]
        return layer(x[:, order.positions], order=order, segments=segments)[0][:, np.argsort(order.positions)]


#: Compiled in every run of the tests; others are left to slow ones.
QUICK = {
    ("context4", True),
    ("data2-context2-tensor2", True),
    ("data2-context2-tensor2", False),
}
SLOW = (pytest.mark.slow, pytest.mark.quick)
CASES = [
    pytest.param(degrees, packed, id=f"{name}-{packed}", marks=() if (name, packed) in QUICK else SLOW)
    for name, degrees in LAYOUTS.items()
    for packed in (True, False)
]


@pytest.mark.parametrize(("degrees", "packed"), CASES)
def test_values_and_gradients_equal_one_device(float64, degrees, packed):
    """Runs of 5 rows or so: no whole number of chunks."""
    layout = Layout(**degrees)
    check(layout, 10 * layout.context, packed)


@pytest.mark.parametrize("length", [8, pytest.param(16, marks=SLOW)])
def test_runs_shorter_than_the_convolution_equal_one_device(float64, length):
    """Runs of 1 and of 2 rows, where a row sees 3 before it."""
    check(Layout(context=4), length, packed=True)


def check(layout: Layout, length: int, packed: bool):
    layer, x, weight = build(), jnp.asarray(rows(BATCH, length)), jnp.asarray(rows(BATCH, length, seed=1))
    segments = jnp.asarray(documents(np.random.default_rng(2), BATCH, length)) if packed else None
    run = partial(across, layout, segments=segments)
    got = jax.jit(partial(with_gradients, run, layer))(x, weight)
    plain = lambda layer, x: layer(x, segments=segments)[0]  # noqa: E731
    want = jax.jit(partial(with_gradients, plain, layer))(x, weight)
    errors = jax.tree.map(error, got, want)
    assert max(jax.tree.leaves(errors)) < 1e-10, errors


def test_shards_of_the_batch_that_run_apart_equal_one_device(float64):
    """As programs run whose gradients are added up once a step: `data` is mapped over, the layout knows the rest."""
    layout, mesh = Layout(context=2, tensor=2), splits_of(Layout(data=2, context=2, tensor=2)).mesh
    layer, x = build(), jnp.asarray(rows(BATCH, 12))
    splits = dataclasses.replace(splits_of(layout), mesh=mesh)
    order = SequenceOrder(length=12, shards=2)

    def shard(x):
        with layout_in_force(lambda x, dims: x, splits):
            return layer(x[:, order.positions], order=order)[0][:, np.argsort(order.positions)]

    got = jax.jit(lambda x: merge(by_shard(shard, 2, shared=())(split(x, 2))))(x)
    assert error(got, jax.jit(lambda x: layer(x)[0])(x)) < 1e-12


def test_float32_equals_one_device():
    layer, x = build(dtype=np.float32), jnp.asarray(rows(2, 40), jnp.float32)
    got = jax.jit(lambda x: across(Layout(context=4), layer, x, None))(x)
    assert got.dtype == jnp.float32
    assert error(got, jax.jit(lambda x: layer(x)[0])(x)) < 1e-5


def test_bfloat16_carries_the_ids_of_documents_exactly():
    """In bfloat16, ids such as 1,000,003 have no number of their own."""
    layer, x = build(dtype=jnp.bfloat16), jnp.asarray(rows(2, 24), jnp.bfloat16)
    base = np.repeat(np.arange(8), 3)[None] + 1_000_003
    segments = jnp.asarray(np.concatenate([base, -base]), jnp.int32)
    got = jax.jit(lambda x: across(Layout(context=4), layer, x, segments))(x)
    want = jax.jit(lambda x: layer(x, segments=segments)[0])(x)
    assert error(got.astype(jnp.float32), want.astype(jnp.float32)) < 2e-2


# ── what moves ───────────────────────────────────────────────────────────────────────────────────────


def counted(text: str, kinds=("all-gather", "reduce-scatter", "all-to-all", "collective-permute", "all-reduce")):
    return Counter((c.kind, c.result_bytes) for c in collectives(text) if c.kind in kinds)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("degrees", [dict(context=4), dict(data=2, context=2, tensor=2)], ids=str)
def test_summaries_of_runs_move_and_no_rows(degrees, packed):
    layout = Layout(**degrees)
    splits, layer, length = splits_of(layout), build(dtype=np.float32), 96
    heads, vectors = (CONFIG.heads, CONFIG.head_dim), (CONFIG.groups, CONFIG.state)
    shapes = Streams(heads, vectors, vectors)
    ones = lambda dims, *shape: jax.device_put(  # noqa: E731
        jnp.ones(shape, jnp.float32), NamedSharding(splits.mesh, layout.activation_spec(dims, shape, name="x"))
    )
    dims = Streams(*((("batch", "seq", name, None)) for name in ("heads", "kv_heads", "kv_heads")))
    streams = Streams(*(ones(names, BATCH, length, *shape) for names, shape in zip(dims, shapes, strict=True)))
    dt = ones(dims.x[:3], BATCH, length, CONFIG.heads)
    segments = ones(("batch", "seq"), BATCH, length).astype(jnp.int32) if packed else None

    def forward(streams, dt):
        run = lambda streams, dt: context_parallel_mamba(  # noqa: E731
            streams, layer._convs(), dt, -jnp.ones(CONFIG.heads), jnp.ones(CONFIG.heads), segments, chunk=8
        )
        with layout_in_force(lambda x, dims: x, splits):
            return jax.vjp(run, streams, dt)

    program = jax.jit(forward).lower(streams, dt).compile()
    samples, tensor = BATCH // layout.data, layout.tensor
    runs = 2 * layout.context
    channels = (np.prod(heads) + 2 * np.prod(vectors)) // tensor + (4 if packed else 0)
    summaries = CONFIG.heads // tensor * (CONFIG.head_dim * CONFIG.state + 1)
    history, states = (4 * runs * samples * size for size in ((CONFIG.conv_kernel - 1) * channels, summaries))
    assert counted(program.as_text()) == {("all-gather", history): 1, ("all-gather", states): 1}

    y, vjp = program(streams, dt)
    backward = jax.jit(lambda vjp, y: vjp(y)).lower(vjp, y).compile().as_text()
    moved = counted(backward)
    scattered = {("reduce-scatter", size // layout.context): 1 for size in (history, states)}
    assert moved == scattered


@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_heads_on_devices_of_their_own_move_what_the_projections_move(sequence_parallel):
    """As half a block of attention and MLP: one gather and one scatter, or one all-reduce."""
    layout = Layout(data=2, tensor=2, sequence_parallel=sequence_parallel, optimizer_copies=2)
    splits, length = splits_of(layout), 24
    skeleton, params, buffers = flatten_module(build(dtype=np.float32))
    placed = {
        path: jax.device_put(
            array, NamedSharding(splits.mesh, layout.weight_spec(skeleton.dims[path], array.shape, name=path))
        )
        for path, array in params.items()
    }
    x = jnp.ones((BATCH, length, WIDTH), jnp.float32)
    x = jax.device_put(x, NamedSharding(splits.mesh, layout.activation_spec((*RESIDUAL, "embed"), x.shape, name="x")))

    def forward(params, x):
        with layout_in_force(constraint_of(layout), splits):
            run = lambda params, x: skeleton.assemble(params, buffers)(x, order=causal_order(length))[0]  # noqa: E731
            return jax.vjp(run, params, x)

    program = jax.jit(forward, out_shardings=(x.sharding, None)).lower(placed, x).compile()
    given = 4 * BATCH // 2 * length * WIDTH
    both = {("all-gather", given): 1, ("reduce-scatter", given // 2): 1}
    assert counted(program.as_text()) == (both if sequence_parallel else {("all-reduce", given): 1})
    y, vjp = program(placed, x)
    specs = {path: array.sharding for path, array in placed.items()}
    backward = jax.jit(lambda vjp, y: vjp(y), out_shardings=(specs, x.sharding)).lower(vjp, y).compile().as_text()
    # Beside the gradients of weights, which are summed over data, the activations of one map out and one back.
    moved = counted(backward, ("all-gather", "reduce-scatter", "all-to-all", "collective-permute"))
    again = {("all-gather", given): 2, ("reduce-scatter", given // 2): 1}
    assert moved == (again if sequence_parallel else {})


def test_groups_that_do_not_divide_are_refused():
    layer = build(dataclasses.replace(CONFIG, groups=1), np.float32)
    layout = Layout(context=2, tensor=2)
    skeleton, params, _ = flatten_module(layer)
    with pytest.raises(PlacementError, match=r"dim 'kv_heads' of size 1 is not divisible by tensor=2"):
        layout.weight_spec(skeleton.dims["b/kernel"], params["b/kernel"].shape, name="b/kernel")
    streams = Streams(jnp.ones((1, 8, 4, 3)), *[jnp.ones((1, 8, 1, 5))] * 2)
    in_force = layout_in_force(lambda x, dims: x, splits_of(layout))
    with in_force, pytest.raises(LayoutError, match=r"groups % tensor = 0, but 1 % 2 = 1"):
        context_parallel_mamba(streams, layer._convs(), jnp.ones((1, 8, 4)), jnp.ones(4), jnp.ones(4), None, chunk=4)


def test_rows_in_their_natural_order_are_refused_where_the_sequence_is_split():
    layout = Layout(context=2)
    with (
        layout_in_force(constraint_of(layout), splits_of(layout)),
        pytest.raises(LayoutError, match="for 1 shards, but the layout in force has 2"),
    ):
        nnx.eval_shape(lambda: build(dtype=np.float32)(jnp.ones((1, 8, WIDTH))))
