"""A module that is called twice has its weights once, with both gradients; two owners of a weight are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import hetjax
from hetjax import Edge, ModuleGraph, Trainer
from hetjax.errors import GraphError
from hetjax.meshes import Layout, Placement
from hetjax.stages.flat_state import flatten_module
from tests.harness.graphs.taps import WIDTH, TappedTower
from tests.harness.parity.oracle import relative_error
from tests.harness.small_modules import Encoder, Head

SAMPLES = 8


class Distance(nnx.Module):
    """[B, D] twice -> the squared distance of a map of the one to the other."""

    def __init__(self, rngs: nnx.Rngs):
        self.map = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, left, right):
        return {"loss": jnp.sum(jnp.square(self.map(left) - right))}


def test_a_module_used_twice_gets_the_sum_of_both_gradients_in_stages(float64):
    tower, head = TappedTower(nnx.Rngs(1), reads=False), Distance(nnx.Rngs(2))
    random = np.random.default_rng(0)
    left, right = random.normal(size=(2, SAMPLES, WIDTH))
    apart = {"tower": flatten_module(tower), "head": flatten_module(head)}

    def loss_of(params):
        called = {name: apart[name][0].assemble(params[name], {}) for name in apart}
        found = [called["tower"](x=x)["tokens" if place else "tap_1"] for place, x in enumerate((left, right))]
        return called["head"](*found)["loss"] / SAMPLES

    params = {name: jax.tree.map(lambda x: x.astype(jnp.float64), found[1]) for name, found in apart.items()}
    loss, gradients = jax.jit(jax.value_and_grad(loss_of))(params)

    modules = {"tower": hetjax.Reused(tower, uses=("one", "two")), "head": head}
    graph = ModuleGraph(modules, [Edge("tower.one_tap_1", "head.left"), Edge("tower.two_tokens", "head.right")])
    layouts = {"tower": Layout(devices="0-3", stage=2, data=2), "head": Layout(devices="4-7", data=2, fsdp=2)}
    trainer = Trainer(graph, Placement(layouts), optimizer=optax.sgd(1e-2), microbatches=2, param_dtype="float64")
    batch = {"tower": {"one_x": left, "two_x": right}, "loss_tokens": SAMPLES}
    found_loss, found = trainer.loss_and_gradients(trainer.init(), batch)
    assert relative_error(found_loss, loss) <= 1e-10
    assert set(found["tower"]) == {f"module/{path}" for path in gradients["tower"]}
    for path, gradient in gradients["tower"].items():
        assert relative_error(found["tower"][f"module/{path}"], gradient) <= 1e-10
    for path, gradient in gradients["head"].items():
        assert relative_error(found["head"][path], gradient) <= 1e-10
    links = {link.name for link in trainer.links}
    assert "tower.0.one_tap_1->head.left" in links and "tower.0.two_hidden->tower.1.two_hidden" in links


def test_a_module_that_cannot_be_cut_cannot_be_cut_when_it_is_reused():
    reused = hetjax.Reused(Encoder(nnx.Rngs(0)), ("a", "b"))
    assert not hasattr(reused, "stage") and not hasattr(reused, "layer_costs")
    assert reused.input_ports == ("a_x", "b_x") and reused.output_ports is None


@pytest.mark.parametrize("uses", [("left",), ("left", "left"), ("left", "to the right"), ()])
def test_uses_that_are_no_names_are_refused(uses):
    with pytest.raises(GraphError, match="give two or more names of letters and digits, each once"):
        hetjax.Reused(Encoder(nnx.Rngs(0)), uses)


def test_two_names_of_one_module_or_of_one_weight_are_refused_with_the_way_on():
    encoder, head = Encoder(nnx.Rngs(0)), Head(nnx.Rngs(1))
    edges = [Edge("left.features", "head.features"), Edge("right.features", "head.skip")]
    with pytest.raises(GraphError) as caught:
        ModuleGraph({"left": encoder, "right": encoder, "head": head}, edges)
    assert str(caught.value).startswith("modules 'left' and 'right' hold the same Param '")
    assert 'hetjax.Reused(module, uses=("left", "right")) to call it several times' in str(caught.value)
    other = Encoder(nnx.Rngs(2))
    other.up.kernel = encoder.up.kernel
    with pytest.raises(GraphError, match="hold the same Param 'up/kernel', and a weight has one owner"):
        ModuleGraph({"left": encoder, "right": other, "head": head}, edges)
    copied = ModuleGraph({"left": encoder, "right": nnx.clone(encoder), "head": head}, edges)
    assert set(copied.modules) == {"left", "right", "head"}
