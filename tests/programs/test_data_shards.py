"""Where samples are independent, the shards of `data` add their gradients up once a step."""

import dataclasses

import numpy as np
import pytest

from hetjax import Trainer
from hetjax.compilation.hlo import collectives
from hetjax.meshes import Layout, Placement
from hetjax.models import VisionEncoder
from tests.harness.compiled_trainer import compile_some, make_trainer
from tests.harness.parity.oracle import relative_error
from tests.harness.parity.problem import make_batch, make_graph, make_optimizer


def kinds(program) -> list[str]:
    return [found.kind for found in collectives(program.text)]


def test_a_data_parallel_encoder_sends_nothing_until_its_gradients_are_added_up():
    trainer = make_trainer(Layout(data=8), Layout(data=4, tensor=2))
    step = compile_some(trainer, make_batch(), programs=["vision"], updates=["vision"])
    program, update = step.programs["vision"], step.updates["vision"]
    assert kinds(program.programs["forward"]) == kinds(program.programs["backward"]) == []
    reduced = collectives(update.programs["reduce"].text)
    assert {found.kind for found in reduced} == {"all-reduce", "reduce-scatter"}
    # Matrices are scattered to the parts of the optimizer.
    parts = sum(int(np.prod(a.sharding.shard_shape(a.shape))) * 4 for a in program.stage.params.values())
    assert sum(found.result_bytes for found in reduced) == pytest.approx(parts, abs=64)


def test_shards_keep_gradients_of_their_own_size_only():
    """A leading dim over `data`, so that a device holds no more than where shards are added up at once."""
    stage = make_trainer(Layout(data=4, tensor=2), Layout(fsdp=4, tensor=2)).stages[0]
    for path, aval in stage.gradients.items():
        assert aval.shape == (4, *stage.params[path].shape)
        used = stage.compute_params[path].sharding.shard_shape(aval.shape[1:])
        assert aval.sharding.shard_shape(aval.shape)[1:] == used
        assert aval.sharding.shard_shape(aval.shape)[0] == 1


class Mixing(VisionEncoder):
    """An encoder with a mean over the batch, and does not say that its samples are independent."""

    independent_samples = False

    def __call__(self, **inputs):
        outputs = super().__call__(**inputs)
        return {port: x * (1 + x.mean(axis=0, keepdims=True)) for port, x in outputs.items()}


@pytest.mark.slow
@pytest.mark.quick
def test_a_module_that_does_not_say_so_is_added_up_in_every_backward_and_right():
    graph = make_graph()
    vision = graph.modules["vision"]
    mixing = Mixing.__new__(Mixing)
    mixing.__dict__.update(vision.__dict__)
    mixed = type(graph)({**graph.modules, "vision": mixing}, graph.edges)
    gradients = []
    for layouts in ((Layout(data=4, tensor=2), Layout(data=4, tensor=2)), (Layout(devices="0"), Layout(devices="0"))):
        placement = Placement(dict(zip(("vision", "llm"), layouts, strict=True)))
        trainer = Trainer(mixed, placement, optimizer=make_optimizer())
        assert trainer.stages[0].gradient_shards == 1
        gradients.append(trainer.loss_and_gradients(trainer.init(), make_batch())[1])
    for path, reference in gradients[1]["vision"].items():
        assert relative_error(gradients[0]["vision"][path], reference) < 1e-5, path


@pytest.mark.slow
@pytest.mark.quick
def test_gradients_do_not_depend_on_when_they_are_added_up():
    placement = Placement({"vision": Layout(devices="0-3", data=4), "llm": Layout(devices="4-7", data=2, tensor=2)})
    found = []
    for independent in (True, False):
        trainer = Trainer(make_graph(), placement, optimizer=make_optimizer(), microbatches=4)
        trainer.stages = tuple(dataclasses.replace(stage, independent_samples=independent) for stage in trainer.stages)
        for stage in trainer.stages:
            trainer.updates[stage.name].stage = stage
        found.append(trainer.loss_and_gradients(trainer.init(), make_batch())[1])
    for module, paths in found[1].items():
        for path, reference in paths.items():
            assert relative_error(found[0][module][path], reference) < 1e-5
