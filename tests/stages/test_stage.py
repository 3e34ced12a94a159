import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax import Edge, ModuleGraph
from hetjax.errors import BatchError, ConfigError, GraphError
from hetjax.meshes import Layout, Placement, PlacementError
from hetjax.models import LanguageModel, ModelError, NemotronH
from hetjax.models.dims import constrain
from hetjax.stages.batch import check_batch
from hetjax.stages.cut import cut_graph, cut_module
from hetjax.stages.flat_state import flatten_module
from hetjax.stages.links import make_links, stage_graph
from tests.harness.graphs.taps import make_graph as make_tapped_graph
from tests.harness.models.tiny_hybrid import HYBRID
from tests.harness.parity.problem import LLM
from tests.harness.parity.problem import make_graph as make_parity_graph
from tests.harness.small_modules import IN, WIDTH, Encoder, Head, Middle, Noisy, Tower, Vote


def make_graph() -> ModuleGraph:
    return ModuleGraph({"encoder": Encoder, "tower": Tower}, [Edge("encoder.features", "tower.features")])


def cut(graph, layouts, *, frozen=(), param_dtype="float32", compute_dtype=None):
    placement = Placement(layouts).resolve(8)
    return cut_graph(
        graph,
        placement,
        devices=jax.devices(),
        frozen=frozen,
        param_dtype=param_dtype,
        compute_dtype=compute_dtype,
    )


LAYOUTS = {"encoder": Layout(devices="0-3", data=4), "tower": Layout(devices="4-7", stage=2, fsdp=2)}


def test_stages_have_names_meshes_and_ports_of_their_own():
    stages = cut(make_graph(), LAYOUTS)
    assert [stage.name for stage in stages] == ["encoder", "tower.0", "tower.1"]
    assert [[d.id for d in stage.mesh.devices.flat] for stage in stages] == [[0, 1, 2, 3], [4, 5], [6, 7]]
    assert [stage.inputs for stage in stages] == [("x",), ("features",), ("hidden", "labels")]
    assert ["out/kernel" in stage.params for stage in stages] == [False, False, True]


def test_weights_are_laid_out_by_their_dim_names_and_the_rest_is_copied():
    layouts = {**LAYOUTS, "tower": Layout(devices="4-7", fsdp=2, tensor=2)}
    encoder, tower = cut(make_graph(), layouts)
    specs = {path: aval.sharding.spec for path, aval in tower.params.items()}
    assert specs["layers/kernel"] == P(None, ("fsdp",), ("tensor",))
    assert specs["out/kernel"] == P(("fsdp",), ("tensor",))
    assert specs["out/bias"] == P(None)
    # Programs compute with whole weights; what the optimizer holds of matrices is divided over the copies.
    assert {aval.sharding.is_fully_replicated for aval in encoder.compute_params.values()} == {True}
    held = {path: aval.sharding.spec for path, aval in encoder.params.items()}
    assert held == {
        "up/kernel": P(None, ("data",)),
        "up/bias": P(None),
        "down/kernel": P(("data",), None),
        "down/bias": P(None),
    }


def test_master_weights_have_the_param_dtype_and_frozen_ones_that_of_the_programs():
    encoder, *_, last = cut(make_graph(), LAYOUTS, frozen=("encoder",), compute_dtype="bfloat16")
    assert {aval.dtype for aval in encoder.params.values()} == {jnp.dtype("bfloat16")}
    assert {aval.dtype for aval in last.params.values()} == {jnp.dtype("float32")}
    assert {aval.dtype for aval in last.compute_params.values()} == {jnp.dtype("bfloat16")}


def test_links_join_edges_and_the_stages_of_a_module():
    graph = make_graph()
    stages = cut(graph, LAYOUTS)
    names = [link.name for link in make_links(graph, stages)]
    assert names == ["encoder.features->tower.0.features", "tower.0.hidden->tower.1.hidden"]


def test_no_gradient_returns_to_where_nothing_trains():
    graph = make_graph()
    stages = cut(graph, LAYOUTS, frozen=("encoder",))
    links = make_links(graph, stages)
    assert {link.name: link.gradient for link in links} == {
        "encoder.features->tower.0.features": False,
        "tower.0.hidden->tower.1.hidden": True,
    }
    nodes = {node.name: (node.backward, node.update) for node in stage_graph(stages, links).stages}
    assert nodes == {"encoder": (False, False), "tower.0": (True, True), "tower.1": (True, True)}


def one_device(*names: str) -> dict[str, Layout]:
    return {name: Layout(devices="0") for name in names}


def test_a_gradient_passes_a_frozen_module_only_when_it_comes_back_out():
    """encoder -> middle (frozen) -> head, where the last edge lets gradients through or not."""
    for lets_through in (True, False):
        graph = ModuleGraph(
            {"encoder": Encoder, "middle": Middle, "head": Head},
            [
                Edge("encoder.features", "middle.features"),
                Edge("encoder.features", "head.skip"),
                Edge("middle.output", "head.features", gradient=lets_through),
            ],
        )
        stages = cut(graph, one_device(*graph.modules), frozen=("middle",))
        links = {link.name: link.gradient for link in make_links(graph, stages)}
        assert links == {
            "encoder.features->middle.features": lets_through,
            "middle.output->head.features": lets_through,
            "encoder.features->head.skip": True,
        }
        nodes = {node.name: node.backward for node in stage_graph(stages, make_links(graph, stages)).stages}
        assert nodes == {"encoder": True, "middle": lets_through, "head": True}


def test_a_trained_module_that_no_gradient_reaches_is_refused_with_the_way_out():
    graph = ModuleGraph({"encoder": Encoder, "head": Head}, [Edge("encoder.features", "head.features", gradient=False)])
    with pytest.raises(GraphError) as caught:
        make_links(graph, cut(graph, one_device(*graph.modules)))
    assert str(caught.value) == (
        "module 'encoder' trains, but no gradient reaches it, as no edge from it lets one through "
        "(encoder.features->head.features); give one gradient=True or freeze 'encoder'"
    )


def test_a_module_without_weights_does_not_train():
    graph = ModuleGraph(
        {"encoder": Encoder, "vote": Vote, "head": Head},
        [
            Edge("encoder.features", "head.features"),
            Edge("encoder.features", "vote.features"),
            Edge("vote.winner", "head.shift", gradient=False),
        ],
    )
    stages = {stage.name: stage for stage in cut(graph, one_device(*graph.modules))}
    assert {name: stage.trains for name, stage in stages.items()} == {"encoder": True, "vote": False, "head": True}


def test_a_graph_in_which_nothing_trains_is_refused():
    graph = make_graph()
    with pytest.raises(GraphError, match="all modules of encoder, tower are frozen or without weights"):
        cut(graph, LAYOUTS, frozen=("encoder", "tower"))
    with pytest.raises(GraphError, match="leave at least one to train"):
        cut(ModuleGraph({"vote": Vote}), one_device("vote"))


def test_placement_and_frozen_must_name_the_modules_of_the_graph():
    graph = make_graph()
    with pytest.raises(PlacementError, match="placement has no layout for module 'tower'; add one"):
        cut(graph, {"encoder": Layout(data=8)})
    with pytest.raises(PlacementError, match="placement names module 'eye', which the graph lacks; its modules are"):
        cut(graph, {**LAYOUTS, "eye": Layout(data=8)})
    with pytest.raises(ConfigError, match="frozen names module 'eye', which the graph lacks; its modules are enc"):
        cut(graph, LAYOUTS, frozen=("eye",))


def test_a_module_that_cannot_be_cut_is_refused_with_the_way_out():
    message = "module 'encoder': its layout has stage=2, but Encoder has no method stage"
    with pytest.raises(GraphError, match=message):
        cut_module(Encoder(nnx.Rngs(0)), "encoder", 0, 2)


def test_a_cut_by_layers_asks_for_what_the_module_lacks():
    with pytest.raises(GraphError, match=r"module 'tower': .* layers=balanced, but Tower has no property layer_costs"):
        cut(make_graph(), {**LAYOUTS, "tower": Layout(devices="4-7", stage=2, tensor=2, layers="balanced")})
    message = r"module 'tower': .* lists the layers .* stage\(index, count\) of Tower takes no parameter layers"
    with pytest.raises(GraphError, match=message):
        cut(make_graph(), {**LAYOUTS, "tower": Layout(devices="4-7", stage=2, tensor=2, layers=[1, 3])})


def test_chunks_go_round_the_meshes_of_a_module():
    _, *tower = cut(make_graph(), {**LAYOUTS, "tower": Layout(devices="4-7", stage=2, tensor=2, chunks=2)})
    assert [stage.name for stage in tower] == ["tower.0", "tower.1", "tower.2", "tower.3"]
    assert [[device.id for device in stage.mesh.devices.flat] for stage in tower] == [[4, 5], [6, 7]] * 2
    assert {stage.params["layers/kernel"].shape[0] for stage in tower} == {1}


def test_more_stages_than_layers_are_refused_with_both_numbers():
    graph = ModuleGraph({"llm": lambda rngs: LanguageModel(LLM, rngs=rngs)})
    for layout in (Layout(devices="0-3", stage=4), Layout(devices="0-1", stage=2, chunks=2, layers="balanced")):
        with pytest.raises((ModelError, GraphError), match="4 stages are to share 2 layers; choose from 1 to 2"):
            cut(graph, {"llm": layout})


def test_independent_devices_are_those_of_a_layout_with_nothing_but_data():
    graph = make_parity_graph()

    def found(**degrees):
        vision, _ = cut(graph, {"vision": Layout(devices="0-3", **degrees), "llm": Layout(devices="4")})
        return vision.gradient_shards, vision.independent_devices

    assert found(data=4) == (4, True)
    assert found(data=2, tensor=2) == (2, False)
    assert found(fsdp=4) == (1, False)
    encoder, *_ = cut(make_graph(), LAYOUTS)
    assert not encoder.independent_samples and encoder.gradient_shards == 1


def test_a_module_is_cut_with_weights_as_with_shapes():
    tower = Tower(nnx.Rngs(0))
    shapes = cut_module(nnx.eval_shape(lambda: Tower(nnx.Rngs(0))), "tower", 1, 2)
    part = cut_module(tower, "tower", 1, 2)
    np.testing.assert_array_equal(part.layers.kernel[...], tower.layers.kernel[...][2:])
    assert tower.layers.kernel[...].shape[0] == 4, "the whole module is left as it is"
    avals = flatten_module(shapes)[1]
    assert {path: aval.shape for path, aval in avals.items()} == {
        path: array.shape for path, array in flatten_module(part)[1].items()
    }


def test_a_weight_that_does_not_divide_is_refused_with_module_path_and_equation():
    with pytest.raises(PlacementError) as caught:
        cut(make_graph(), {**LAYOUTS, "tower": Layout(devices="5-7", fsdp=3)})
    assert str(caught.value).startswith(
        "module 'tower': weight layers/kernel of shape (4, 8, 8): dim 'embed' of size 8"
    )
    assert "8 % 3 = 2" in str(caught.value)


def test_ports_lead_with_the_batch_unless_they_say_otherwise():
    encoder, first, _ = cut(make_graph(), LAYOUTS)
    assert encoder.port_sharding("x", (8, IN)).spec == P(("data",), None)
    assert first.port_sharding("features", (8, WIDTH)).spec == P(("fsdp",), None)
    assert encoder.port_sharding("loss", ()).spec == P()
    table = dataclasses.replace(encoder, port_dims={"table": (None, "batch")})
    assert table.port_sharding("table", (3, 8)).spec == P(None, ("data",))
    with pytest.raises(BatchError, match=r"module 'encoder': port 'x' of shape \(6, 2\): dim 'batch' of size 6 is not"):
        encoder.port_sharding("x", (6, 2))


def test_constrain_follows_the_layout_of_the_stage_that_runs():
    class Constrained(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(IN, WIDTH, rngs=rngs)

        def __call__(self, x):
            return {"loss": jnp.sum(constrain(self.linear(x), "batch", "mlp"))}

    (stage,) = cut(ModuleGraph({"only": Constrained}), {"only": Layout(devices="0-3", data=2, tensor=2)})
    x = jax.ShapeDtypeStruct((4, IN), jnp.float32, sharding=stage.port_sharding("x", (4, IN)))
    text = jax.jit(stage.call).lower(stage.params, stage.buffers, {"x": x}).as_text()
    assert '[{"data"}, {"tensor"}]' in text


def test_a_call_that_adds_state_is_refused():
    class Growing(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(IN, WIDTH, rngs=rngs)

        def __call__(self, x):
            self.seen = nnx.Variable(x)
            return {"loss": jnp.sum(self.linear(x))}

    (stage,) = cut(ModuleGraph({"only": Growing}), one_device("only"))
    with pytest.raises(GraphError, match=r"module 'only': calling it changed its state tree \(seen.*\); keep it fixed"):
        jax.eval_shape(stage.call, stage.params, stage.buffers, {"x": jax.ShapeDtypeStruct((2, IN), "float32")})


def test_a_call_that_changes_the_dtype_of_state_is_refused():
    class Counting(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(IN, WIDTH, rngs=rngs)
            self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

        def __call__(self, x):
            self.calls.set_value(self.calls[...] + 0.5)
            return {"loss": jnp.sum(self.linear(x))}

    (stage,) = cut(ModuleGraph({"only": Counting}), one_device("only"))
    with pytest.raises(GraphError, match=r"calling it turned calls from int32\[\] into float32\[\]; keep its shape"):
        jax.eval_shape(stage.call, stage.params, stage.buffers, {"x": jax.ShapeDtypeStruct((2, IN), "float32")})


def test_a_bare_array_is_the_port_output_and_state_comes_back():
    graph = ModuleGraph(
        {"encoder": Noisy, "middle": Middle, "head": Head},
        [Edge("encoder.features", "middle.features"), Edge("middle.output", "head.features")],
    )
    encoder, middle, _ = cut(graph, one_device(*graph.modules))
    outputs, after = jax.eval_shape(
        encoder.call, encoder.params, encoder.buffers, {"x": jax.ShapeDtypeStruct((2, IN), "float32")}
    )
    assert set(after) == set(encoder.buffers) != set()
    outputs, after = jax.eval_shape(middle.call, middle.params, middle.buffers, outputs)
    assert {port: aval.shape for port, aval in outputs.items()} == {"output": (2, WIDTH)}
    assert after == {}


def test_a_batch_that_does_not_divide_states_the_equation():
    stages = cut(make_graph(), LAYOUTS)
    assert check_batch(stages, 24, 3) == 8
    with pytest.raises(BatchError) as caught:
        check_batch(stages, 10, 4)
    assert str(caught.value) == (
        "a batch of 10 samples is not divisible into 4 microbatches (10 % 4 = 2); change batch_size or microbatches"
    )
    with pytest.raises(BatchError) as caught:
        check_batch(stages, 12, 2)
    assert str(caught.value) == (
        "module 'encoder': a microbatch of 6 samples (batch 12 / microbatches 2) is not divisible by data=4 "
        "(6 % 4 = 2); change batch_size, microbatches or the degree"
    )


def test_shardings_of_all_weights_are_on_the_mesh_of_their_stage():
    for stage in cut(make_graph(), LAYOUTS):
        for aval in (*stage.params.values(), *stage.buffers.values()):
            assert isinstance(aval.sharding, NamedSharding)
            assert aval.sharding.mesh == stage.mesh


@pytest.mark.parametrize(("pattern", "nests"), [("MM*MM*", True), ("M*M*", False)])
def test_a_stage_nests_layers_where_a_group_of_a_pattern_has_groups_in_it(pattern, nests):
    graph = ModuleGraph({"llm": lambda rngs: NemotronH(dataclasses.replace(HYBRID, pattern=pattern), rngs=rngs)}, [])
    (stage,) = cut(graph, {"llm": Layout(devices="0")})
    assert stage.nests_layers == nests


# ── edges into and out of parts ──────────────────────────────────────────────────────────────────


def tapped_links(change) -> str:
    """What refuses the links of two tapped towers in two stages each, one of whose parts is changed."""
    stages = list(
        cut(make_tapped_graph(), {"eye": Layout(devices="0-1", stage=2), "llm": Layout(devices="2-3", stage=2)})
    )
    change(stages)
    with pytest.raises(GraphError) as caught:
        make_links(make_tapped_graph(), stages)
    return str(caught.value)


def replace_ports(index: int, **ports):
    return lambda stages: stages.__setitem__(index, dataclasses.replace(stages[index], **ports))


def test_an_edge_that_no_part_takes_is_refused():
    message = tapped_links(replace_ports(3, inputs=("hidden", "tap_2", "labels")))
    assert message == (
        "edge eye.tap_3->llm.tap_3: 'tap_3' is among the input_ports of module 'llm', but none of its 2 parts takes "
        "it; have stage(index, count) list it in the input_ports of the parts whose layers read it"
    )


@pytest.mark.parametrize(
    ("ports", "who"), [(("tap_0",), "none"), (("tap_0", "tap_1", "tap_2"), "eye.0, eye.1")], ids=["none", "two"]
)
def test_an_edge_that_none_or_two_parts_make_is_refused(ports, who):
    message = tapped_links(replace_ports(0, output_ports=ports))
    port = "tap_1" if who == "none" else "tap_2"
    assert message == (
        f"edge eye.{port}->llm.{port}: of the parts of module 'eye' {who} have '{port}' in output_ports; have "
        "stage(index, count) list it in those of the one part that makes it"
    )


def test_a_last_stage_that_nothing_reads_is_refused():
    graph = ModuleGraph(make_tapped_graph().modules, [Edge("eye.tap_0", "llm.x"), Edge("eye.tap_1", "llm.tap_1")])
    layouts = {"eye": Layout(devices="0-1", stage=2), "llm": Layout(devices="2")}
    with pytest.raises(GraphError, match=r"module 'eye': nothing reads what its stage eye\.1 makes; add an edge from"):
        make_links(graph, cut(graph, layouts))


def test_an_edge_from_an_output_that_a_module_does_not_list_is_refused():
    with pytest.raises(GraphError, match="module 'eye' has no output 'tap_9'; its outputs are tokens, tap_0, tap_1"):
        ModuleGraph(make_tapped_graph().modules, [Edge("eye.tap_9", "llm.x")])
