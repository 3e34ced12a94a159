import jax
import numpy as np
import pytest
from flax import nnx

from hetjax import Edge, ModuleGraph
from hetjax.errors import GraphError
from hetjax.graph import input_ports, optional_ports, port_of
from hetjax.stages.flat_state import flatten_module
from tests.harness.small_modules import Encoder, Head, Middle


def refusal(modules, edges=()) -> str:
    with pytest.raises(GraphError) as caught:
        ModuleGraph(modules, edges)
    return str(caught.value)


def weights(graph: ModuleGraph, module: str, seed: int) -> dict[str, np.ndarray]:
    return jax.tree.map(np.asarray, flatten_module(graph.build(module, seed))[1])


def test_two_encoders_and_a_skip_edge_are_ordered_from_inputs_to_loss():
    graph = ModuleGraph(
        {"head": Head, "middle": Middle, "right": Encoder, "left": Encoder},
        [
            Edge("middle.output", "head.features"),
            Edge("left.features", "head.skip"),
            Edge("left.features", "middle.features"),
            Edge("right.features", "middle.extra"),
        ],
    )
    assert graph.sink == "head"
    assert graph.order[-2:] == ("middle", "head")
    assert set(graph.order[:2]) == {"left", "right"}
    assert [edge.destination for edge in graph.outputs("left")] == ["head.skip", "middle.features"]
    assert [edge.source for edge in graph.inputs("head")] == ["middle.output", "left.features"]


def test_a_cycle_is_refused_and_named():
    message = refusal(
        {"a": Middle, "b": Middle, "head": Head},
        [
            Edge("a.output", "b.features"),
            Edge("b.output", "a.features"),
            Edge("b.output", "head.features"),
        ],
    )
    assert "form a cycle; drop one edge" in message
    assert "a -> b -> a" in message or "b -> a -> b" in message


def test_an_edge_of_a_module_to_itself_is_a_cycle():
    message = refusal({"a": Middle, "head": Head}, [Edge("a.output", "a.extra"), Edge("a.output", "head.features")])
    assert "modules a -> a form a cycle" in message


@pytest.mark.parametrize("edge", [Edge("eye.features", "head.features"), Edge("encoder.features", "eye.features")])
def test_an_unknown_module_is_refused_with_the_known_ones(edge):
    message = refusal({"encoder": Encoder, "head": Head}, [edge])
    assert message == f"edge {edge.name}: there is no module 'eye'; the modules are encoder, head"


def test_an_unknown_input_is_refused_with_the_known_ones():
    message = refusal({"encoder": Encoder, "head": Head}, [Edge("encoder.features", "head.tokens")])
    assert message == (
        "edge encoder.features->head.tokens: module 'head' has no input 'tokens'; its inputs are features, labels, "
        "skip, shift, from the attribute input_ports or the parameters of __call__"
    )


def test_an_input_fed_twice_is_refused_with_both_edges():
    edges = [Edge("left.features", "head.features"), Edge("right.features", "head.features")]
    message = refusal({"left": Encoder, "right": Encoder, "head": Head}, edges)
    assert message == (
        "edges left.features->head.features and right.features->head.features both feed one input; drop one of them"
    )


def test_two_modules_at_the_end_are_refused_by_name():
    message = refusal({"encoder": Encoder, "one": Head, "two": Head}, [Edge("encoder.features", "one.features")])
    assert message.startswith("modules two, one have") or message.startswith("modules one, two have")
    assert "only one module may end the graph" in message
    assert "hetjax.Edge" in message and "losses={" in message


@pytest.mark.parametrize("text", ["encoder", "encoder.", ".features", ""])
def test_an_edge_end_without_module_and_port_is_refused(text):
    with pytest.raises(GraphError, match=r'not of the form "module.port", e.g. "vision.tokens"'):
        port_of(text)


def test_a_builder_that_returns_something_else_is_refused():
    assert refusal({"a": lambda rngs: "text"}) == "module 'a': its builder returned str; return a Flax NNX module"
    assert "its builder returned NoneType" in refusal({"a": lambda rngs: None})
    assert "its builder returned dict" in refusal({"a": lambda rngs: {"w": rngs.params()}})


def test_a_module_that_cannot_be_called_is_refused():
    class Silent(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 2, rngs=rngs)

    for given in (Silent, Silent(nnx.Rngs(0))):
        assert refusal({"a": given}).startswith("module 'a': Silent has no method __call__; add one")


def test_what_is_neither_module_nor_builder_is_refused():
    assert refusal({}) == "a module graph needs at least one module"
    assert refusal({"a": 3}) == "module 'a' is 3; give a Flax NNX module or a function that builds one"
    assert "module name 'my head' is no identifier" in refusal({"my head": Head})


def test_inputs_come_from_the_signature_whatever_self_is_called():
    class Short(nnx.Module):
        def __call__(this, x, *args, scale=1.0, **kwargs):
            return x * scale

    assert input_ports(Short()) == ("x", "scale")
    assert optional_ports(Short()) == ("scale",)


def test_declared_ports_win_over_the_signature():
    class Declared(nnx.Module):
        input_ports = ("image", "text")
        optional_ports = ("image",)

        def __call__(self, **inputs):
            return inputs

    assert input_ports(Declared()) == ("image", "text")
    assert optional_ports(Declared()) == ("image",)


def test_weights_depend_on_seed_and_name_alone():
    """The same module in another graph, among others, in another order, has the same weights."""
    small = ModuleGraph({"encoder": Encoder, "head": Head}, [Edge("encoder.features", "head.features")])
    large = ModuleGraph(
        {"head": Head, "twin": Encoder, "encoder": Encoder},
        [Edge("encoder.features", "head.features"), Edge("twin.features", "head.skip")],
    )
    same = weights(small, "encoder", 3)
    for path, value in weights(large, "encoder", 3).items():
        np.testing.assert_array_equal(value, same[path])
    assert not np.array_equal(weights(large, "twin", 3)["up/kernel"], same["up/kernel"])
    assert not np.array_equal(weights(small, "encoder", 4)["up/kernel"], same["up/kernel"])


def test_a_module_given_with_weights_is_used_as_it_is():
    encoder = Encoder(nnx.Rngs(5))
    graph = ModuleGraph({"encoder": encoder, "head": Head}, [Edge("encoder.features", "head.features")])
    assert graph.is_concrete("encoder")
    assert not graph.is_concrete("head")
    assert graph.build("encoder", 0) is graph.build("encoder", 1) is encoder


def test_the_abstract_module_has_shapes_and_no_memory():
    graph = ModuleGraph({"encoder": Encoder(nnx.Rngs(0)), "head": Head}, [Edge("encoder.features", "head.features")])
    for module in graph.modules:
        leaves = jax.tree.leaves(nnx.state(graph.abstract(module)))
        assert leaves
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
