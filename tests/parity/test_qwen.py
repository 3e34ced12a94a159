"""A decoder with tied embeddings, norms of queries and keys, scaled rotations and softmax experts, in every kind of
layout against one device without any mesh."""

import dataclasses
import functools

import jax
import optax
import pytest
from flax import nnx

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.compilation.hlo import collectives
from hetjax.meshes import Layout, Placement
from hetjax.models import LanguageModel, ModelError, MoEConfig, RopeScaling, VisionEncoder
from tests.harness.choices import others_slow
from tests.harness.compiled_trainer import compile_some
from tests.harness.parity import problem
from tests.harness.parity.comparison import TOLERANCE
from tests.harness.parity.oracle import relative_error, train_on_one_device

STEPS = 2
SCALING = RopeScaling(factor=4.0, original_length=16)
LLM = dataclasses.replace(problem.LLM, query_key_norm=True, tie_embeddings=True, rope_scaling=SCALING)
MODELS = {"dense": LLM, "experts": dataclasses.replace(LLM, mlp_width=16, experts=MoEConfig(count=4, top_k=2))}
LAYOUTS = {
    "data2-tensor2": Layout(devices="0-3", data=2, tensor=2),
    "data2-tensor2-rows whole": Layout(devices="0-3", data=2, tensor=2, sequence_parallel=False),
    "fsdp2-context2-tensor2": Layout(fsdp=2, context=2, tensor=2),
    "expert2-tensor2": Layout(devices="0-3", expert=2, tensor=2),
}
CASES = [
    ("dense", "fsdp2-context2-tensor2", 1),
    ("dense", "data2-tensor2", 2),
    ("dense", "data2-tensor2-rows whole", 1),
    ("experts", "expert2-tensor2", 1),
]


@functools.cache
def make_graph(model: str) -> ModuleGraph:
    modules = {
        "vision": VisionEncoder(problem.VISION, rngs=nnx.Rngs(1)),
        "llm": LanguageModel(MODELS[model], rngs=nnx.Rngs(2)),
    }
    return ModuleGraph(modules, [Edge("vision.tokens", "llm.image_tokens")])


def make_trainer(model: str, layout: Layout, dtype: str, microbatches: int) -> Trainer:
    return Trainer(
        make_graph(model),
        Placement({"vision": Layout(data=8), "llm": layout}),
        optimizer=problem.make_optimizer(),
        schedule="1f1b",
        microbatches=microbatches,
        max_grad_norm=problem.MAX_GRAD_NORM,
        param_dtype=dtype,
        compute_dtype=dtype,
    )


@functools.cache
def expected(model: str, dtype: str):
    optimizer = optax.chain(optax.clip_by_global_norm(problem.MAX_GRAD_NORM), problem.make_optimizer())
    return train_on_one_device(make_graph(model), problem.make_batch(), optimizer, steps=STEPS, dtype=dtype)


@pytest.mark.parametrize(("model", "layout", "microbatches"), others_slow(CASES, []))
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_training_equals_one_device(model, layout, microbatches, dtype):
    trainer, batch = make_trainer(model, LAYOUTS[layout], dtype, microbatches), problem.make_batch()
    state = trainer.init()
    for loss, gradients, weights in expected(model, dtype):
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
        assert ("gradient", "llm", "layers/block/attention/query_norm/scale") in errors
        assert ("gradient", "llm", "head/kernel") not in errors


@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
def test_the_tied_table_is_neither_kept_nor_gathered_over_the_vocabulary(dtype):
    trainer = make_trainer("dense", LAYOUTS["data2-tensor2"], dtype, 2)
    program = compile_some(trainer, problem.make_batch(), programs=["llm"]).programs["llm"]
    vocabulary, width = LLM.vocab_size, LLM.width
    kept = {aval.shape[-2:] for aval in program.residual_shapes}  # what comes before counts shards of the batch
    assert kept and not kept & {(vocabulary, width), (width, vocabulary)}
    for text in (program.programs["forward"].text, program.programs["backward"].text):
        gathered = {each.result_bytes for each in collectives(text) if each.kind == "all-gather"}
        assert gathered and 4 * vocabulary * width not in gathered


def test_tied_embeddings_are_one_stage():
    with pytest.raises(ModelError, match="with tie_embeddings, stages = 2 must be 1"):
        make_trainer("dense", Layout(devices="0-3", data=2, stage=2), "float32", 2)
    with jax.default_device(jax.devices()[0]):
        model = make_graph("dense").modules["llm"]
        assert model.stage(0, 1).cut.last
