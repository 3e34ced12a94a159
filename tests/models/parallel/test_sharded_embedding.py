import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from hetjax.meshes import Layout
from hetjax.models.dims import RESIDUAL, SEQUENCE
from hetjax.models.parallel.layout_in_force import layout_in_force
from hetjax.models.parallel.sharded_embedding import sharded_embedding
from tests.harness.models.layouts import splits_of

# V vocabulary · D width
V, D = 12, 8
LAYOUTS = {
    "tensor4": Layout(tensor=4),
    "tensor4-whole-rows": Layout(tensor=4, sequence_parallel=False),
    "fsdp2-tensor2": Layout(fsdp=2, tensor=2),
    "data2-fsdp2-zero1": Layout(data=2, fsdp=2, zero=1),
    "context2-tensor2": Layout(fsdp=2, context=2, tensor=2),
}


@pytest.fixture
def inputs():
    random = np.random.default_rng(0)
    ids = random.integers(0, V, (4, 8)).astype(np.int32)
    ids[0, :3] = 0, V - 1, -1  # as an index, -1 is the last row
    return random.normal(size=(V, D)), ids, random.normal(size=(4, 8, D))


def place(layout, table, ids, weight):
    """The arrays where a layout has them."""
    mesh = splits_of(layout).mesh
    specs = (
        layout.compute_spec(("vocab", "embed"), table.shape, name="table"),
        layout.activation_spec(SEQUENCE, ids.shape, name="ids"),
        layout.activation_spec((*RESIDUAL, "embed"), weight.shape, name="weight"),
    )
    return [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip((table, ids, weight), specs, strict=True)]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_split_table_gives_the_rows_and_gradients_of_a_whole_one(float64, inputs, layout):
    def objective(table, ids, weight):
        return jnp.sum(sharded_embedding(table, ids) * weight)

    want = jax.value_and_grad(objective)(*inputs)
    with layout_in_force(lambda x, dims: x, splits_of(layout)):
        got = jax.jit(jax.value_and_grad(objective))(*place(layout, *inputs))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-12)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-12)
    master = layout.optimizer_spec(("vocab", "embed"), (V, D), name="table")
    assert got[1].sharding.is_equivalent_to(NamedSharding(splits_of(layout).mesh, master), 2)


@pytest.mark.parametrize("layout", [None, *LAYOUTS.values()], ids=["whole", *LAYOUTS])
def test_an_id_that_the_table_lacks_gives_no_number(inputs, layout):
    table, ids, weight = inputs
    ids[1, 1], ids[2, 2] = V, -V - 1
    if layout is None:
        rows = sharded_embedding(jnp.asarray(table), ids)
    else:
        with layout_in_force(lambda x, dims: x, splits_of(layout)):
            rows = jax.jit(sharded_embedding)(*place(layout, table, ids, weight)[:2])
    lacking = np.isnan(rows).all(axis=-1)
    assert np.argwhere(lacking).tolist() == [[1, 1], [2, 2]]
    assert not np.isnan(np.asarray(rows)[~lacking]).any()
