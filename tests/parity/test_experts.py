"""A language model of experts behind a vision encoder, in every kind of layout, against one device without any mesh.

Which experts a token goes to is a comparison: where two scores are closer than rounding, another order of
summation may choose another expert, and all numbers differ. `test_no_choice_is_close` shows that this model and batch
have no such tie within float32.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.compilation.hlo import collectives
from hetjax.meshes import Layout, Placement, PlacementError
from hetjax.models import LanguageModel, MoEConfig, VisionEncoder
from hetjax.models.parts import router
from hetjax.programs.forward_backward import ForwardBackward
from tests.harness.choices import others_slow
from tests.harness.compile_quickly import quickly
from tests.harness.compiled_trainer import compile_some
from tests.harness.parity import problem
from tests.harness.parity.comparison import TOLERANCE
from tests.harness.parity.oracle import relative_error, steps_on_one_device

STEPS, BIAS_ENTRIES = 3, 2 * 8
BIAS, COUNTS = "layers/block/mlp/router/bias", "layers/block/mlp/router/counts"
EXPERTS = MoEConfig(
    count=8, top_k=3, activation="relu2", shared_width=16, scores="sigmoid", factor=2.5, bias_rate=0.02,
    balance_loss=0.05,
)  # fmt: skip
LLM = dataclasses.replace(problem.LLM, mlp_width=16, experts=EXPERTS)
MODELS = {"sigmoid": LLM, "softmax": dataclasses.replace(LLM, experts=MoEConfig(count=8, top_k=2))}
# {name: (vision layout, llm layout)}; all devices are shared.
LAYOUTS = {
    "expert4-tensor2": (Layout(data=4, tensor=2), Layout(expert=4, tensor=2)),
    "expert2-context2-tensor2": (Layout(data=8), Layout(expert=2, context=2, tensor=2)),
    "stage2-expert2-tensor2": (Layout(data=4, tensor=2), Layout(stage=2, expert=2, tensor=2)),
    "expert8": (Layout(data=8), Layout(expert=8)),
    "data2-expert2-fsdp2": (Layout(data=8), Layout(data=2, expert=2, fsdp=2)),
    "data4-tensor2": (Layout(data=8), Layout(data=4, tensor=2)),
}
QUICK = [("expert4-tensor2", 1), ("stage2-expert2-tensor2", 4), ("expert2-context2-tensor2", 4)]


make_optimizer = functools.partial(problem.make_optimizer, small_gradients=True)


@functools.cache
@quickly()
def make_graph(model: str) -> ModuleGraph:
    modules = {
        "vision": VisionEncoder(problem.VISION, rngs=nnx.Rngs(1)),
        "llm": LanguageModel(MODELS[model], rngs=nnx.Rngs(2)),
    }
    return ModuleGraph(modules, [Edge("vision.tokens", "llm.image_tokens")])


@functools.cache
def expected(model: str, dtype: str):
    optimizer = optax.chain(optax.clip_by_global_norm(problem.MAX_GRAD_NORM), make_optimizer())
    return steps_on_one_device(make_graph(model), problem.make_batch(), optimizer, steps=STEPS, dtype=dtype)


def make_trainer(layouts, dtype: str, microbatches: int, model: str = "sigmoid", **options) -> Trainer:
    return Trainer(
        make_graph(model),
        Placement(dict(zip(("vision", "llm"), layouts, strict=True))),
        optimizer=make_optimizer(),
        schedule="1f1b",
        microbatches=microbatches,
        max_grad_norm=problem.MAX_GRAD_NORM,
        param_dtype=dtype,
        compute_dtype=dtype,
        **options,
    )


def buffer(trainer: Trainer, state, path: str) -> np.ndarray:
    """A buffer of the language model, its stages joined."""
    parts = [state.stages[stage.name].buffers[path] for stage in trainer.stages if stage.module == "llm"]
    return np.concatenate(jax.device_get(parts))


def check(trainer: Trainer, dtype: str, model: str = "sigmoid") -> None:
    batch, state = problem.make_batch(), trainer.init()
    for loss, gradients, weights, buffers in expected(model, dtype):
        _, actual_gradients = trainer.loss_and_gradients(state, batch)
        state, metrics = trainer.step(state, batch)
        errors = {"loss": relative_error(metrics["loss"], loss)}
        for what, actual, wanted in (
            ("gradient", actual_gradients, gradients),
            ("weight", trainer.weights(state), weights),
        ):
            for module, path in ((m, p) for m in wanted for p in wanted[m]):
                errors[what, module, path] = relative_error(actual[module][path], wanted[module][path])
        worst = max(errors, key=errors.get)
        assert errors[worst] <= TOLERANCE[dtype], (worst, errors[worst])
        if BIAS in buffers["llm"]:
            np.testing.assert_array_equal(buffer(trainer, state, BIAS), buffers["llm"][BIAS])
            assert np.count_nonzero(buffers["llm"][BIAS]) > BIAS_ENTRIES // 2, "the bias has moved"
            assert not buffer(trainer, state, COUNTS).any()


@pytest.mark.parametrize(("name", "microbatches"), others_slow(QUICK, QUICK[-1:]))
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_experts_equal_one_device(name, microbatches, dtype):
    check(make_trainer(LAYOUTS[name], dtype, microbatches), dtype)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.quick
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"], indirect=True)
def test_all_layouts_of_experts_equal_one_device(name, microbatches, model, dtype):
    check(make_trainer(LAYOUTS[name], dtype, microbatches, model), dtype, model)


@pytest.mark.slow
@pytest.mark.quick
def test_no_choice_is_close(monkeypatch):
    """Between the last chosen expert and the next one lies more than float32 rounds, in every layer and step."""
    gaps, best = [], router._best

    def watched(count, preference):
        ordered = -jnp.sort(-preference, axis=-1)
        jax.debug.callback(lambda gap: gaps.append(gap.min()), ordered[..., count - 1] - ordered[..., count])
        return best(count, preference)

    monkeypatch.setattr(router, "_best", watched)
    for model in MODELS:
        optimizer = optax.chain(optax.clip_by_global_norm(problem.MAX_GRAD_NORM), make_optimizer())
        steps_on_one_device(make_graph(model), problem.make_batch(), optimizer, steps=STEPS, dtype="float32")
        jax.effects_barrier()
        assert len(gaps) == STEPS * MODELS[model].layers
        assert min(gaps) > 2e-6, min(gaps)
        gaps.clear()


def llm_program(trainer: Trainer) -> ForwardBackward:
    """The compiled programs of the language model, and of no other stage."""
    return compile_some(trainer, problem.make_batch(), programs=["llm"]).programs["llm"]


@functools.cache
def fsdp_program(dtype: str) -> ForwardBackward:
    return llm_program(make_trainer(LAYOUTS["data2-expert2-fsdp2"], dtype, 1))


@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
def test_rows_travel_twice_each_way_and_no_weight_travels(dtype):
    vision, llm = LAYOUTS["expert4-tensor2"]
    trainer = make_trainer((vision, dataclasses.replace(llm, sequence_parallel=False)), dtype, 1)
    program = llm_program(trainer)
    for text, numbers in ((program.programs["forward"].text, 2), (program.programs["backward"].text, 1)):
        found = collectives(text)
        rows = problem.SAMPLES // 4 * problem.ROWS
        width, k = 4 * LLM.width, 4 * EXPERTS.top_k
        # Room for all own rows at each of 4 peers; and numbers and weights of the experts that they ask for.
        sizes = sorted(each.result_bytes for each in found if each.kind == "all-to-all")
        assert sizes == sorted([4 * rows * width] * 2 + [4 * rows * k] * numbers)
        # Gradients of weights that are no experts' are scattered to the parts of the optimizer over `expert`.
        scattered = {"reduce-scatter"} if numbers == 1 else set()
        assert {each.kind for each in found} == {"all-to-all", "all-reduce", *scattered}


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
def test_layers_that_are_computed_again_send_rows_to_the_experts_once_more(dtype):
    trainer = make_trainer(LAYOUTS["expert4-tensor2"], dtype, 1, remat={"llm": "full"})
    program = llm_program(trainer)
    rows = problem.SAMPLES * problem.ROWS * LLM.width * 4
    for text, times in ((program.programs["forward"].text, 2), (program.programs["backward"].text, 3)):
        assert [each.result_bytes for each in collectives(text) if each.kind == "all-to-all"].count(rows) == times


@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
def test_gradients_of_experts_are_scattered_to_the_parts_of_the_optimizer(dtype):
    """Over fsdp and data each arrives in parts, and none is summed whole."""
    program = fsdp_program(dtype)
    found = collectives(program.programs["backward"].text)
    for path in ("layers/block/mlp/up", "layers/block/mlp/down"):
        aval = program.stage.params[path]
        part = aval.size // LLM.layers * 4 // 2 // 4  # of a layer: half of the experts, a quarter of embed
        assert [each.result_bytes for each in found if each.kind == "reduce-scatter"].count(part) >= 1
        assert max(each.result_bytes for each in found if each.kind == "all-reduce") < 4 * part


@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
def test_fsdp_gathers_weights_and_no_activation(dtype):
    program = fsdp_program(dtype)
    weights = {
        4 * aval.size // 2 ** ("mlp/up" in path or "mlp/down" in path) for path, aval in program_weights(program)
    }
    for text in (program.programs["forward"].text, program.programs["backward"].text):
        gathered = {each.result_bytes for each in collectives(text) if each.kind == "all-gather"}
        assert {4 * 8 * 24 * 16 // 2} <= gathered <= weights


def program_weights(program):
    """Every weight, and every layer of it."""
    for path, aval in program.stage.params.items():
        yield path, aval
        yield path, jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype)


@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
@pytest.mark.parametrize("name", others_slow(["expert4-tensor2", "data4-tensor2"], ["expert4-tensor2"]))
def test_residuals_contain_no_weight_of_an_expert(name, dtype):
    trainer = make_trainer(LAYOUTS[name], dtype, 2)
    program = llm_program(trainer)
    weights = {aval.shape for _, aval in program_weights(program) if len(aval.shape) > 1}
    assert {(2, 8, 24, 16), (8, 16, 24), (24, 8)} <= weights
    kept = {aval.shape for aval in program.residual_shapes}
    assert kept and not kept & weights


def test_experts_that_do_not_divide_are_refused_with_the_equation():
    with pytest.raises(PlacementError) as caught:
        make_trainer((Layout(devices="0"), Layout(devices="0-2", expert=3)), "float32", 1)
    assert "dim 'experts' of size 8 is not divisible by expert=3 (8 % 3 = 2)" in str(caught.value)
    assert "module 'llm': weight layers/block/mlp/" in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
def test_a_frozen_language_model_keeps_its_bias(dtype):
    trainer = make_trainer(LAYOUTS["expert4-tensor2"], dtype, 2, frozen=("llm",))
    state, _ = trainer.step(trainer.init(), problem.make_batch())
    assert not buffer(trainer, state, BIAS).any() and not buffer(trainer, state, COUNTS).any()
    assert trainer.compiled.ends == {}
