import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import hetjax
from hetjax.errors import GraphError
from hetjax.meshes import Layout, Placement
from hetjax.models import DecoderConfig, LanguageModel
from hetjax.stages.flat_state import by_path, flatten_module
from hetjax.state.module_arrays import find_parts, merge_stages
from hetjax.state.module_state import find_state, join_state, split_state
from hetjax.state.train_state import StageState
from hetjax.state.whole_array import WholeArray

CONFIG = DecoderConfig(vocab_size=40, width=24, layers=2, heads=4, kv_heads=2, head_dim=6, mlp_width=48)


def trainer_on(layout: Layout, **settings) -> hetjax.Trainer:
    graph = hetjax.ModuleGraph({"llm": lambda rngs: LanguageModel(CONFIG, rngs=rngs)})
    return hetjax.Trainer(graph, Placement({"llm": layout}), optimizer=optax.adam(1e-3), **settings)


def shape(*sizes: int, devices: tuple[int, ...] = (0,), spec: PartitionSpec | None = None) -> jax.ShapeDtypeStruct:
    mesh = Mesh(np.array(jax.devices())[list(devices)], ("data",))
    return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=NamedSharding(mesh, spec or PartitionSpec()))


def place(part: jax.ShapeDtypeStruct, seed: int) -> jax.Array:
    return jax.device_put(np.random.default_rng(seed).normal(size=part.shape).astype(part.dtype), part.sharding)


def random_state(trainer: hetjax.Trainer) -> hetjax.TrainState:
    stages = {}
    for seed, stage in enumerate(trainer.stages):
        avals = StageState(params=stage.params, buffers=stage.buffers, opt_state=trainer.updates[stage.name].opt_state)
        stages[stage.name] = jax.tree.map(lambda aval, seed=seed: place(aval, seed), avals)
    return hetjax.TrainState(step=0, stages=stages)


def pointers(*arrays: jax.Array) -> set[int]:
    return {shard.data.unsafe_buffer_pointer() for array in arrays for shard in array.addressable_shards}


def test_weights_of_two_stages_equal_the_uncut_module():
    trainer = trainer_on(Layout(data=2, tensor=2, stage=2))
    weights = trainer.weights(trainer.init(3))["llm"]
    whole = jax.jit(lambda: flatten_module(trainer.graph.build("llm", 3))[1])()
    assert weights.keys() == whole.keys()
    for path, array in whole.items():
        np.testing.assert_allclose(weights[path], array, rtol=1e-6, err_msg=path)


def test_a_module_without_arrays_given_has_no_entries():
    trainer = trainer_on(Layout(data=8))
    assert merge_stages(trainer.graph, trainer.stages, {}) == {"llm": {}}


def test_joined_state_has_the_values_of_the_stages_in_their_own_memory():
    trainer = trainer_on(Layout(data=1, fsdp=2, tensor=2, stage=2))
    state = random_state(trainer)
    kinds = find_state(trainer.graph, "llm", trainer.stages, trainer.updates)
    joined = join_state(kinds, state)
    assert joined.keys() == {"params", "buffers", "opt_state"}
    path = "layers/block/mlp/down/kernel"
    halves = [state.stages[name].params[path] for name in ("llm.0", "llm.1")]
    np.testing.assert_array_equal(joined["params"][path], np.concatenate([np.asarray(half) for half in halves]))
    assert pointers(joined["params"][path]) == pointers(*halves)
    assert len(pointers(*halves)) == 8

    apart = split_state(kinds, joined, trainer.stages, trainer.updates)
    assert apart.keys() == state.stages.keys()
    for before, after in zip(jax.tree.leaves(state.stages), jax.tree.leaves(apart), strict=True):
        assert after.sharding == before.sharding
        np.testing.assert_array_equal(after, before)
    assert pointers(*(apart[name].params[path] for name in apart)) == pointers(*halves)


def test_optimizer_counts_are_scalars_that_every_stage_has_alike():
    trainer = trainer_on(Layout(data=4, stage=2))
    kinds = find_state(trainer.graph, "llm", trainer.stages, trainer.updates)
    counts = [whole for whole in kinds["opt_state"].values() if whole.shape == ()]
    assert len(counts) == 1
    assert list(counts[0].parts) == ["llm.0", "llm.1"]
    assert not counts[0].stacked
    split = counts[0].split(jax.device_put(jnp.int32(7), counts[0].aval.sharding))
    assert {name: int(count) for name, count in split.items()} == {"llm.0": 7, "llm.1": 7}
    assert split["llm.1"].sharding.device_set == set(jax.devices()[4:])


def test_layers_that_are_sharded_inside_a_stage_stay_in_stage_order():
    parts = {
        "m.0": shape(4, 3, devices=(0, 1), spec=PartitionSpec("data")),
        "m.1": shape(4, 3, devices=(5, 4), spec=PartitionSpec("data")),
    }
    whole = find_parts("m", {"w": shape(8, 3)}, {name: {"w": part} for name, part in parts.items()})["w"]
    arrays = {name: place(part, seed) for seed, (name, part) in enumerate(parts.items())}
    expected = np.concatenate([np.asarray(arrays["m.0"]), np.asarray(arrays["m.1"])])
    np.testing.assert_array_equal(whole.join(arrays), expected)
    np.testing.assert_array_equal(whole.join_on_host(arrays), expected)
    for name, part in whole.split(jax.device_put(expected, whole.aval.sharding)).items():
        np.testing.assert_array_equal(part, arrays[name])


def uneven() -> WholeArray:
    stages = {"m.0": {"w": shape(3, 2)}, "m.1": {"w": shape(1, 2, devices=(1,))}}
    return find_parts("m", {"w": shape(4, 2)}, stages)["w"]


def test_uneven_slices_of_layers_join_on_the_host():
    arrays = {name: place(part, seed) for seed, (name, part) in enumerate(uneven().parts.items())}
    layers = uneven().join_on_host(arrays)
    np.testing.assert_array_equal(layers[:3], arrays["m.0"])
    np.testing.assert_array_equal(layers[3:], arrays["m.1"])


def test_uneven_slices_of_layers_stay_slices_on_the_devices():
    arrays = {name: place(part, seed) for seed, (name, part) in enumerate(uneven().parts.items())}
    joined = uneven().join(arrays)
    assert [(each.stage, each.start, each.stop) for each in joined.slices] == [("m.0", 0, 3), ("m.1", 3, 4)]
    assert all(uneven().split(joined)[name] is array for name, array in arrays.items())


def test_several_stages_on_one_mesh_are_slices_and_what_all_of_them_hold_is_one_array():
    stages = {f"m.{i}": {"w": shape(1, 2, devices=(i % 2,)), "n": shape(devices=(i % 2,))} for i in range(4)}
    found = find_parts("m", {"w": shape(4, 2), "n": shape()}, stages)
    assert found["w"].is_sliced and not found["n"].is_sliced
    counts = {name: place(part, 0) for name, part in found["n"].parts.items()}
    whole = found["n"].join(counts)
    assert len(whole.addressable_shards) == 2
    assert {name: part.sharding for name, part in found["n"].split(whole).items()} == {
        name: part.sharding for name, part in found["n"].parts.items()
    }


@pytest.mark.parametrize(
    ("whole", "parts", "message"),
    [
        ({"w": shape(4, 2)}, {"m.0": {"w": shape(2, 2)}, "m.1": {"w": shape(1, 2)}}, r"\(4, 2\).*m\.0, m\.1.*\(1, 2\)"),
        (
            {"w": shape(4, 2)},
            {"m.0": {"w": shape(2, 3)}, "m.1": {"w": shape(2, 3)}},
            r"slices of its leading dim that add up",
        ),
        ({"w": shape(4, 2)}, {"m.0": {"w": shape(4, 2)}, "m.1": {"w": shape(2, 2)}}, r"or all of it each"),
        ({"w": shape()}, {"m.0": {"w": shape(2)}}, r"the whole module has shape \(\)"),
        ({"w": shape(4, 2)}, {"m.0": {"v": shape(4, 2)}}, r"stage 'm\.0' holds v, which the whole module lacks"),
        ({"w": shape(4, 2), "v": shape(1)}, {"m.0": {"w": shape(4, 2)}}, r"module 'm': v: no stage holds it"),
    ],
)
def test_stages_that_do_not_make_up_the_module_are_refused(whole, parts, message):
    with pytest.raises(GraphError, match=message):
        find_parts("m", whole, parts)


def test_leaves_of_an_optimizer_tree_are_named_by_path():
    params = {"layers/kernel": jnp.zeros(2)}
    paths = by_path(optax.adam(1e-3).init(params))
    assert list(paths) == ["0/count", "0/mu/layers/kernel", "0/nu/layers/kernel"]
