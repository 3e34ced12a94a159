"""The order of a causal sequence over devices, and the work it leaves to each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.models.errors import LayoutError
from hetjax.models.parallel.layout_in_force import Splits, layout_in_force
from hetjax.models.parallel.ring_attention import ring_attention
from hetjax.models.parallel.zigzag_order import SequenceOrder, causal_order, tiles_of_round
from hetjax.models.parts.attention import Attention


def pairs_computed(length: int, shards: int, *, causal: bool) -> list[int]:
    """Query-key pairs, per head and sample, whose scores each device computes; masked ones of a tile count."""
    chunk = length // (shards * (2 if causal else 1))
    return [
        sum(len(tiles_of_round(index, number, shards, causal=causal)) for number in range(shards)) * chunk**2
        for index in range(shards)
    ]


def context_in_force(degree: int):
    mesh = Mesh(np.array(jax.devices()[:degree]), ("context",))
    of = {"seq": ("context",)}

    def constraint(x, dims):
        spec = P(*[of.get(dim) for dim in dims])
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return layout_in_force(constraint, Splits(mesh=mesh, axes_of=lambda dim: of.get(dim, ())))


def test_each_device_holds_a_chunk_from_either_end():
    assert SequenceOrder(length=12, shards=3).positions.tolist() == [0, 1, 10, 11, 2, 3, 8, 9, 4, 5, 6, 7]
    assert SequenceOrder(length=5).positions.tolist() == [0, 1, 2, 3, 4]


def test_arranged_rows_and_places_agree():
    order = SequenceOrder(length=16, shards=4)
    x = jnp.arange(16)[None] * 10
    arranged = order.arrange(x)
    rows = jnp.array([[3, 0, 15, 9]])
    np.testing.assert_array_equal(arranged[0, order.places(rows)[0]], x[0, rows[0]])
    assert (order.places(jnp.array([[16, 400]])) >= 16).all()


@pytest.mark.parametrize("shards", [2, 3, 4, 8])
def test_tiles_cover_each_pair_that_a_query_may_see_once_and_no_tile_is_in_vain(shards):
    order = SequenceOrder(length=2 * shards * 3, shards=shards)
    chunks = order.positions.reshape(shards, 2, -1)
    times = np.zeros((order.length, order.length), int)
    for index in range(shards):
        for step in range(shards):
            for rows, columns, triangular in tiles_of_round(index, step, shards, causal=True):
                queries, keys = chunks[index, rows], chunks[(index - step) % shards, columns]
                seen = queries[:, None] >= keys
                assert seen.any() and triangular == (not seen.all())
                times[np.ix_(queries, keys)] += seen
    np.testing.assert_array_equal(times, np.tri(order.length, dtype=int))


@pytest.mark.parametrize("shards", [2, 3, 4, 8, 16])
def test_attention_work_per_device_differs_by_two_percent_at_most(shards):
    length = 2 * shards * 8
    pairs = pairs_computed(length, shards, causal=True)
    assert max(pairs) <= 1.02 * min(pairs)
    assert sum(pairs) == (2 * shards + 1) * shards * 8**2
    # In the natural order, the keys up to its last query: the last device has c times the work of the first.
    natural = [(index + 1) * (length // shards) ** 2 for index in range(shards)]
    assert sum(pairs) < sum(natural) and max(natural) == shards * min(natural)


@pytest.mark.parametrize("causal", [True, False])
def test_compiled_attention_computes_the_pairs_that_are_counted(causal):
    """Products of the program of one device: two a pair (scores, values), each K multiplications and additions."""
    shards, length, heads, width = 4, 256, 2, 32
    mesh = Mesh(np.array(jax.devices()[:shards]), ("context",))
    split = Splits(mesh=mesh, axes_of=lambda dim: {"seq": ("context",)}.get(dim, ()))
    x = jax.ShapeDtypeStruct((1, length, heads, width), jnp.float32, sharding=NamedSharding(mesh, P(None, "context")))
    jaxpr = jax.make_jaxpr(lambda q, k, v: ring_attention(split, q, k, v, causal=causal))(x, x, x)
    pairs = pairs_computed(length, shards, causal=causal)[0]
    assert products(jaxpr.jaxpr) == 2 * pairs * heads * width


def products(jaxpr) -> int:
    """Multiplications of all matrix products in a jaxpr and those inside it."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * int(np.prod([left[dim] for dim in contracted]))
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            total += products(inner) if hasattr(inner, "eqns") else 0
    return total


def test_a_sequence_that_does_not_divide_is_refused_with_the_equation():
    with context_in_force(4), pytest.raises(LayoutError) as caught:
        causal_order(20)
    assert str(caught.value) == (
        "a causal sequence needs seq % (2*context) = 0, but 20 % (2*4) = 4; "
        "pad sequences to 24 positions or change context=4"
    )
    assert causal_order(20) == SequenceOrder(length=20)


def test_a_sequence_that_sequence_parallelism_cannot_split_is_refused_with_the_equation():
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("context", "tensor"))
    axes = {"seq": ("context",), "residual_seq": ("context", "tensor")}
    with layout_in_force(lambda x, dims: x, Splits(mesh=mesh, axes_of=lambda dim: axes.get(dim, ()))):
        with pytest.raises(LayoutError) as caught:
            causal_order(12)
        assert causal_order(16) == SequenceOrder(length=16, shards=2)
    assert str(caught.value) == (
        "sequence parallelism needs seq % (context*tensor) = 0, but 12 % (2*4) = 4; "
        "pad sequences to 16 positions or set sequence_parallel=False"
    )


def test_an_order_of_another_layout_is_refused():
    attention, x = Attention(8, 2, 1, 4, rngs=nnx.Rngs(0)), jnp.ones((1, 8, 8))
    with context_in_force(2), pytest.raises(LayoutError, match=r"order of positions is for 1 shards, .* has 2 of seq"):
        attention(x, order=SequenceOrder(length=8))
