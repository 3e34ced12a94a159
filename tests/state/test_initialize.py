import jax
import numpy as np
import pytest
from flax import nnx

from hetjax import Edge, ModuleGraph
from hetjax.errors import ConfigError
from hetjax.meshes import Layout, Placement
from hetjax.stages.cut import cut_graph
from hetjax.state.initialize import initialize
from hetjax.state.module_arrays import merge_stages
from tests.harness.small_modules import Encoder, Head, Noisy, Tower

EDGES = [Edge("encoder.features", "tower.features")]
PLACEMENTS = {
    "one device": {"encoder": Layout(devices="0"), "tower": Layout(devices="0")},
    "disjoint": {"encoder": Layout(devices="0-2", data=3), "tower": Layout(devices="4-7", data=2, tensor=2)},
    "colocated, two stages": {"encoder": Layout(data=8), "tower": Layout(stage=2, data=2, tensor=2)},
    "fsdp": {"encoder": Layout(devices="0-3", fsdp=4), "tower": Layout(devices="4-7", fsdp=4)},
}


def make_state(graph, layouts, seed: int = 0, **options):
    options = {"frozen": (), "param_dtype": "float32", "compute_dtype": None, **options}
    stages = cut_graph(graph, Placement(layouts).resolve(8), devices=jax.devices(), **options)
    return stages, initialize(graph, stages, {}, seed)


def weights_of(graph, layouts, seed: int = 0):
    stages, state = make_state(graph, layouts, seed)
    for stage in stages:
        for path, array in state.stages[stage.name].params.items():
            assert array.sharding == stage.params[path].sharding
    return merge_stages(graph, stages, {name: stage.params for name, stage in state.stages.items()})


def assert_bit_equal(found, expected) -> None:
    assert {module: set(arrays) for module, arrays in found.items()} == {
        module: set(arrays) for module, arrays in expected.items()
    }
    for module, arrays in expected.items():
        for path, value in arrays.items():
            assert found[module][path].tobytes() == value.tobytes(), (module, path)


def test_weights_built_from_one_seed_are_bit_equal_on_every_placement():
    graph = ModuleGraph({"encoder": Encoder, "tower": Tower}, EDGES)
    expected = weights_of(graph, PLACEMENTS["one device"])
    assert np.std(expected["tower"]["layers/kernel"]) > 0
    for name in set(PLACEMENTS) - {"one device"}:
        assert_bit_equal(weights_of(graph, PLACEMENTS[name]), expected)


def test_weights_given_are_the_same_on_every_placement_and_for_every_seed():
    tower = Tower(nnx.Rngs(2))
    graph = ModuleGraph({"encoder": Encoder(nnx.Rngs(1)), "tower": tower}, EDGES)
    expected = weights_of(graph, PLACEMENTS["one device"])
    assert expected["tower"]["layers/kernel"].tobytes() == np.asarray(tower.layers.kernel[...]).tobytes()
    for seed, layouts in enumerate(PLACEMENTS.values()):
        assert_bit_equal(weights_of(graph, layouts, seed), expected)


def test_another_seed_makes_other_weights_of_builders():
    graph = ModuleGraph({"only": Head})
    kernels = [weights_of(graph, {"only": Layout(devices="0")}, seed)["only"]["mix/kernel"] for seed in (0, 1, 0)]
    assert not np.array_equal(kernels[0], kernels[1])
    np.testing.assert_array_equal(kernels[0], kernels[2])


def test_modules_given_keep_their_arrays_when_a_step_reuses_the_memory_of_the_state():
    graph = ModuleGraph({"encoder": Noisy(nnx.Rngs(1)), "tower": Tower(nnx.Rngs(2))}, EDGES)
    before = jax.tree.map(
        np.array, {name: nnx.to_pure_dict(nnx.state(m, nnx.Param)) for name, m in graph.modules.items()}
    )
    for layouts in (PLACEMENTS["one device"], PLACEMENTS["colocated, two stages"]):
        _, state = make_state(graph, layouts)
        for stage in state.stages.values():
            for array in (*stage.params.values(), *stage.buffers.values()):
                array.delete()
    after = {name: nnx.to_pure_dict(nnx.state(m, nnx.Param)) for name, m in graph.modules.items()}
    jax.tree.map(np.testing.assert_array_equal, after, before)
    graph.modules["encoder"](np.ones((4, 6), np.float32))


def test_weights_are_made_in_the_dtypes_asked_for_and_statistics_keep_theirs():
    graph = ModuleGraph({"encoder": Noisy, "tower": Tower}, EDGES)
    _, state = make_state(
        graph, PLACEMENTS["one device"], param_dtype="bfloat16", compute_dtype="float16", frozen=("encoder",)
    )
    assert {a.dtype.name for a in state.stages["tower"].params.values()} == {"bfloat16"}
    assert {a.dtype.name for a in state.stages["encoder"].params.values()} == {"float16"}
    assert state.stages["encoder"].buffers["norm/mean"].dtype == np.float32
    assert state.step == 0


@pytest.mark.parametrize("seed", [2**31, -(2**31) - 1])
def test_a_seed_beyond_32_bits_is_refused(seed):
    with pytest.raises(ConfigError, match=f"seed is {seed}, which does not fit into 32 bits; give a number from 0 to"):
        make_state(ModuleGraph({"only": Head}), {"only": Layout(devices="0")}, seed)
