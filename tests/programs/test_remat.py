"""What is kept of a layer: the numbers stay, the memory of a microbatch shrinks, and no weights are kept."""

import math

import jax
import numpy as np
import pytest

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.errors import ConfigError
from hetjax.meshes import Layout, Placement
from tests.harness.parity.oracle import relative_error
from tests.harness.parity.problem import make_batch, make_graph, make_optimizer
from tests.harness.small_modules import CLASSES, IN, Encoder, Head

SETTINGS = {"none": "none", "dots": "dots", "points": ["attention", "mlp"], "full": "full"}
LAYOUTS = {"vision": Layout(devices="0-1", data=2), "llm": Layout(devices="2-5", stage=2, data=2)}


def make_trainer(setting) -> Trainer:
    return Trainer(
        make_graph(),
        Placement(LAYOUTS),
        optimizer=make_optimizer(),
        microbatches=2,
        remat=dict.fromkeys(LAYOUTS, setting),
    )


def residual_bytes(trainer: Trainer) -> dict[str, int]:
    programs = trainer.compiled.programs
    return {
        name: sum(math.prod(r.shape) * r.dtype.itemsize for r in program.residual_shapes)
        for name, program in programs.items()
    }


@pytest.fixture(scope="module")
def found():
    """By setting: (gradients, bytes kept of a microbatch by stage, whether a weight is among them)."""
    results = {}
    for name, setting in SETTINGS.items():
        trainer = make_trainer(setting)
        _, gradients = trainer.loss_and_gradients(trainer.init(), make_batch())
        programs = trainer.compiled.programs.values()
        kept = [{r.shape for r in program.residual_shapes} & weight_shapes(program) for program in programs]
        results[name] = gradients, residual_bytes(trainer), any(kept)
    return results


def weight_shapes(program) -> set[tuple[int, ...]]:
    """Shapes of stacked weights with two dims or more, none of which an activation has."""
    return {aval.shape for path, aval in program.stage.params.items() if path.startswith("layers/") and aval.ndim > 2}


@pytest.mark.slow
@pytest.mark.quick
def test_every_setting_gives_the_same_gradients(found):
    reference = found["none"][0]
    for gradients, _, _ in found.values():
        for module, paths in reference.items():
            for path, gradient in paths.items():
                assert relative_error(gradients[module][path], gradient) < 1e-5


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("stage", ["vision", "llm.0", "llm.1"])
def test_what_computes_more_again_keeps_less(found, stage):
    kept = [found[name][1][stage] for name in SETTINGS]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < kept[0] / 2


@pytest.mark.slow
@pytest.mark.quick
def test_no_setting_keeps_weights(found):
    assert not any(weights for _, _, weights in found.values())


def test_a_module_without_a_stack_of_layers_is_computed_again_as_a_whole():
    graph = ModuleGraph({"encoder": Encoder, "head": Head}, [Edge("encoder.features", "head.features")])
    random = np.random.default_rng(0)
    batch = {
        "encoder": {"x": random.normal(size=(8, IN)).astype(np.float32)},
        "head": {"labels": random.integers(0, CLASSES, 8)},
        "loss_tokens": 8,
    }
    results = []
    for setting in ("none", "full"):
        trainer = Trainer(
            graph, Placement(dict.fromkeys(graph.modules, Layout(devices="0"))), optimizer=make_optimizer(),
            remat={"encoder": setting},
        )  # fmt: skip
        _, gradients = trainer.loss_and_gradients(trainer.init(), batch)
        results.append((gradients, residual_bytes(trainer)))
    (gradients, kept), (again, less) = results
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), gradients, again)
    assert less["encoder"] < kept["encoder"]
    assert less["head"] == kept["head"]


@pytest.mark.parametrize(
    ("remat", "told"),
    [
        ({"llm": "some"}, "module 'llm': remat is 'some'; give none, full, dots, or a list of points"),
        ({"llm": []}, "a list names points, one or more"),
        ({"lm": "full"}, "remat names module 'lm', which the graph lacks"),
    ],
)
def test_unknown_settings_and_modules_are_refused(remat, told):
    with pytest.raises(ConfigError, match=told):
        Trainer(make_graph(), Placement(LAYOUTS), optimizer=make_optimizer(), remat=remat)
