"""What `fsdp`, and the optimizer's parts over other axes, gather and scatter, read from what a trainer compiled."""

import dataclasses
import functools
import math
from collections import Counter

import jax
import numpy as np
import pytest

from hetjax import Trainer
from hetjax.compilation.hlo import collectives
from hetjax.execution.step_programs import Step
from hetjax.meshes import Layout, Placement
from tests.harness.compiled_trainer import compile_some, trace_alone
from tests.harness.parity import problem

LAYOUTS = {
    "data2-fsdp4": {"data": 2, "fsdp": 4},
    "fsdp2-tensor2": {"fsdp": 2, "tensor": 2, "sequence_parallel": False},
}
MODULES = ("vision", "llm")
# Weights whose gradient needs no values of their own: looked up, or multiplied with what has no gradient.
NOT_GATHERED_AGAIN = ("embedding", "patch/kernel")


@functools.cache
def _trainer(degrees: tuple, zero: int, options: tuple) -> Trainer:
    layout = Layout(**dict(degrees), zero=zero)
    layout = dataclasses.replace(layout, devices=f"0-{layout.device_count - 1}")
    return Trainer(
        problem.make_graph(),
        Placement(dict.fromkeys(MODULES, layout)),
        optimizer=problem.make_optimizer(),
        microbatches=2,
        **dict(options),
    )


def make_trainer(degrees: dict, zero: int, **options) -> Trainer:
    """Both modules in one layout."""
    return _trainer(tuple(degrees.items()), zero, tuple(options.items()))


@functools.cache
def compiled(trainer: Trainer) -> Step:
    """All programs of both modules, and no others."""
    return compile_some(trainer, problem.make_batch(), programs=MODULES, updates=MODULES)


def bytes_of_parts(stage, *, per_layer: bool) -> dict[str, int]:
    """By path of the weights that fsdp splits: bytes whole over fsdp on one device, of one layer or of all."""
    found = {}
    for path, aval in stage.params.items():
        entries = [(entry,) if isinstance(entry, str) else entry or () for entry in aval.sharding.spec]
        split = [axis for entry in entries for axis in entry]
        if "fsdp" in split:
            layers = aval.shape[0] if per_layer and path.startswith("layers/") else 1
            found[path] = math.prod(aval.shape) * 4 // layers // (stage.layout.tensor if "tensor" in split else 1)
    return found


def results(text: str, kind: str) -> Counter:
    return Counter(each.result_bytes for each in collectives(text) if each.kind == kind)


@pytest.mark.parametrize("degrees", LAYOUTS.values(), ids=LAYOUTS)
def test_zero_3_gathers_each_weight_once_a_layer_and_pass_and_scatters_each_gradient(degrees):
    trainer = make_trainer(degrees, 3)
    for stage in trainer.stages:
        program, fsdp = compiled(trainer).programs[stage.name], stage.layout.fsdp
        parts = bytes_of_parts(stage, per_layer=True)
        assert len(parts) == 9
        assert results(program.programs["forward"].text, "all-gather") == Counter(parts.values())
        backward = program.programs["backward"].text
        again = [size for path, size in parts.items() if path not in NOT_GATHERED_AGAIN]
        assert results(backward, "all-gather") == Counter(again)
        assert results(backward, "reduce-scatter") == Counter(size // fsdp for size in parts.values())
        # Over data the optimizer has parts of these parts.
        prepare = results(compiled(trainer).updates[stage.name].programs["prepare"].text, "all-gather")
        held = Counter(size // fsdp for size in bytes_of_parts(stage, per_layer=False).values())
        assert prepare == (held if stage.layout.data > 1 else Counter())


@pytest.mark.parametrize("degrees", LAYOUTS.values(), ids=LAYOUTS)
def test_zero_1_gathers_each_weight_once_a_step_and_scatters_each_gradient(degrees):
    trainer = make_trainer(degrees, 1)
    for stage in trainer.stages:
        program, fsdp = compiled(trainer).programs[stage.name], stage.layout.fsdp
        parts = bytes_of_parts(stage, per_layer=True)
        assert not results(program.programs["forward"].text, "all-gather")
        backward = program.programs["backward"].text
        assert not results(backward, "all-gather")
        assert results(backward, "reduce-scatter") == Counter(size // fsdp for size in parts.values())
        prepare = results(compiled(trainer).updates[stage.name].programs["prepare"].text, "all-gather")
        assert prepare == Counter(bytes_of_parts(stage, per_layer=False).values())


@pytest.mark.parametrize("zero", [1, 3])
def test_gradients_of_replicas_are_scattered_once_a_step_to_the_parts_that_the_optimizer_holds(zero):
    """Over data a device sums its own part of each gradient, not what fsdp has still to scatter."""
    trainer = make_trainer(LAYOUTS["data2-fsdp4"], zero)
    for stage in trainer.stages:
        backward = compiled(trainer).programs[stage.name].programs["backward"].text
        assert not [each for each in collectives(backward) if each.group_size == 2]
        reduce = collectives(compiled(trainer).updates[stage.name].programs["reduce"].text)
        parts = bytes_of_parts(stage, per_layer=False)
        scattered = Counter(each.result_bytes for each in reduce if each.kind == "reduce-scatter")
        assert scattered == Counter(size // 4 // 2 for size in parts.values())
        whole = sum(math.prod(aval.shape) * 4 for path, aval in stage.params.items() if path not in parts)
        summed = sum(each.result_bytes for each in reduce if each.kind == "all-reduce" and each.group_size == 2)
        assert summed == whole


SLOW = (pytest.mark.slow, pytest.mark.quick)
COPIES = {
    "data4-tensor2": {"data": 4, "tensor": 2, "sequence_parallel": False},
    "data2-context2-tensor2": {"data": 2, "context": 2, "tensor": 2},
    "expert4-context2": {"expert": 4, "context": 2},
}


@pytest.mark.parametrize(
    "degrees",
    [
        pytest.param(degrees, id=name, marks=() if name == "data2-context2-tensor2" else SLOW)
        for name, degrees in COPIES.items()
    ],
)
def test_the_optimizer_is_divided_over_all_copies_with_one_gather_and_one_scatter_a_weight(degrees):
    trainer = make_trainer(degrees, 3)
    stage = next(stage for stage in trainer.stages if stage.name == "llm")
    update, shards = compiled(trainer).updates["llm"], stage.gradient_shards
    copies = stage.mesh.size // stage.layout.tensor
    whole = {}  # bytes on one device of a weight that programs compute with, for those that are divided
    for path, aval in stage.params.items():
        held, used = (math.prod(s.sharding.shard_shape(s.shape)) * 4 for s in (aval, stage.compute_params[path]))
        assert used == held * (copies if path.endswith(("kernel", "embedding")) else 1), path
        if used > held:
            whole[path] = used
    assert len(whole) == 9
    assert results(update.programs["prepare"].text, "all-gather") == Counter(whole.values())
    scattered = results(update.programs["reduce"].text, "reduce-scatter")
    assert scattered == (Counter(size // copies for size in whole.values()) if shards > 1 else Counter())
    assert not collectives(update.programs["update"].text)
    # What is not added up by shard, backwards scatter over all other axes; no matrix is summed whole.
    backward = compiled(trainer).programs["llm"].programs["backward"].text
    layers = {path: size // (stage.params[path].shape[0] if "layers/" in path else 1) for path, size in whole.items()}
    expected = Counter(size // (copies // shards) for size in layers.values()) if copies > shards else Counter()
    assert results(backward, "reduce-scatter") & expected == expected
    assert not {*layers.values()} & {*results(backward, "all-reduce")}


def test_copies_of_the_optimizer_stay_along_the_outermost_axes():
    trainer = make_trainer({"data": 2, "context": 2, "optimizer_copies": 2}, 3)
    for stage in trainer.stages:
        specs = [aval.sharding.spec for path, aval in stage.params.items() if path.endswith("kernel")]
        assert specs and all([entry for entry in spec if entry] == ["context"] for spec in specs)
        reduce = collectives(compiled(trainer).updates[stage.name].programs["reduce"].text)
        assert {each.kind for each in reduce} == {"all-reduce"}


@pytest.mark.slow
@pytest.mark.quick
def test_nothing_gathered_is_kept_for_the_backward():
    kept = []
    for degrees in ({"expert": 2}, {"fsdp": 2}):  # without experts, `expert` splits the batch alone
        programs = compiled(make_trainer(degrees, 3)).programs
        kept.append({name: sum(math.prod(r.shape) for r in p.residual_shapes) for name, p in programs.items()})
    assert kept[0] == kept[1]


@pytest.mark.parametrize("zero", [1, 3])
def test_master_weights_and_optimizer_state_are_split_and_zero_1_adds_whole_weights_to_compute_with(zero):
    trainer = make_trainer({"fsdp": 2}, zero)
    state = trainer.init().stages["llm"]
    stage = next(stage for stage in trainer.stages if stage.name == "llm")
    split = bytes_of_parts(stage, per_layer=False)
    held = {path: state.params[path].addressable_shards[0].data.nbytes for path in split}
    assert held == {path: size // 2 for path, size in split.items()}
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.addressable_shards[0].data.nbytes for leaf in moments) == 2 * sum(
        param.addressable_shards[0].data.nbytes for param in state.params.values()
    )
    assert set(stage.cast_params) == (set(split) if zero == 1 else set())
    step = compile_some(trainer, problem.make_batch(), updates=["llm"])
    compute, gradients = step.updates["llm"].prepare(state.params)
    for path, size in split.items():
        assert compute[path].addressable_shards[0].data.nbytes == (size if zero == 1 else size // 2)
        assert gradients[path].addressable_shards[0].data.nbytes == size // 2


def test_a_frozen_module_is_held_as_it_is_computed_with():
    trainer = make_trainer({"fsdp": 2}, 1, frozen=("vision",))
    vision = next(stage for stage in trainer.stages if stage.name == "vision")
    assert not vision.cast_params
    assert all(aval.sharding.is_fully_replicated for aval in vision.params.values())
    _, metrics = trainer.step(trainer.init(), problem.make_batch())
    assert np.isfinite(float(metrics["loss"]))


def test_weights_are_cast_before_they_are_gathered():
    """Read before compilation: CPU programs widen bfloat16 in collectives."""
    trainer = make_trainer({"fsdp": 2}, 1, compute_dtype="bfloat16")
    update = trace_alone(trainer, problem.make_batch()).updates["llm"]
    text = update.programs["prepare"].lower().as_text()
    pinned = [line for line in text.splitlines() if "sharding_constraint" in line]
    assert len(pinned) == len(update.stage.cast_params)
    assert all("bf16>" in line for line in pinned)
