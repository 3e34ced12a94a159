"""A language model and encoders whose sequences are split over `context`, against one device without any mesh."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import optax
import pytest

from hetjax import Trainer
from hetjax.compilation.hlo import collectives
from hetjax.errors import BatchError
from hetjax.meshes import Layout, Placement
from hetjax.stages.flat_state import flatten_module
from tests.harness.choices import others_slow
from tests.harness.parity import problem
from tests.harness.parity.comparison import TOLERANCE
from tests.harness.parity.oracle import relative_error, train_on_one_device

ROWS, SAMPLES, STEPS = 16, 16, 2
FORMS = ("ring", "all_gather")

# {name: (vision layout, llm layout)}; all devices are shared.
LAYOUTS = {
    "llm-context4-tensor2": (Layout(data=8), Layout(context=4, tensor=2, sequence_parallel=False)),
    "llm-stage2-context2-tensor2": (Layout(data=8), Layout(stage=2, context=2, tensor=2)),
    "vision-context2": (Layout(data=2, context=2, tensor=2), Layout(data=2, context=4)),
    "vision-stage2-context2-llm-fsdp": (Layout(stage=2, data=2, context=2), Layout(fsdp=2, context=2, tensor=2)),
    "llm-context8": (Layout(data=4, context=2), Layout(context=8)),
    "disjoint-context3": (Layout(devices="0-1", context=2), Layout(devices="2-7", context=3, tensor=2)),
}
QUICK = [
    ("llm-context4-tensor2", "ring", True),
    ("llm-stage2-context2-tensor2", "ring", False),
    ("vision-context2", "all_gather", True),
]


@functools.cache
def make_batch(rows: int = ROWS, *, packed: bool):
    """The batch of the suite with longer sequences; packed ones hold two to four documents of unlike lengths."""
    batch = jax.tree.map(lambda x: x[:SAMPLES], problem.make_batch())
    random = np.random.default_rng(3)
    llm = dict(batch["llm"])
    for port in ("tokens", "labels"):
        llm[port] = random.integers(0, problem.VOCABULARY, (SAMPLES, rows)).astype(np.int32)
    llm["loss_weights"] = (random.random((SAMPLES, rows)) < np.linspace(0.1, 1, SAMPLES)[:, None]).astype(np.float32)
    # Spread over the sequence, so that images land on every shard; padding stays outside.
    spread = np.sort(random.permuted(np.tile(np.arange(rows, dtype=np.int32), (SAMPLES, 1)), axis=1)[:, :8], axis=1)
    llm["image_positions"] = np.where(batch["llm"]["image_positions"] < problem.ROWS, spread, rows + 3).astype(np.int32)
    if packed:
        llm["segments"] = np.sort(random.integers(0, 4, (SAMPLES, rows)), axis=1).astype(np.int32)
    return {"vision": dict(batch["vision"]), "llm": llm}


@functools.cache
def expected(dtype: str, rows: int, packed: bool):
    optimizer = optax.chain(optax.clip_by_global_norm(problem.MAX_GRAD_NORM), problem.make_optimizer())
    batch = make_batch(rows, packed=packed)
    return train_on_one_device(problem.make_graph(), batch, optimizer, steps=STEPS, dtype=dtype)


def make_trainer(layouts, form: str, dtype: str, microbatches: int = 2) -> Trainer:
    layouts = [dataclasses.replace(layout, context_attention=form) for layout in layouts]
    return Trainer(
        problem.make_graph(),
        Placement(dict(zip(("vision", "llm"), layouts, strict=True))),
        optimizer=problem.make_optimizer(),
        schedule="1f1b",
        microbatches=microbatches,
        max_grad_norm=problem.MAX_GRAD_NORM,
        param_dtype=dtype,
        compute_dtype=dtype,
    )


def check(layouts, form: str, packed: bool, dtype: str, rows: int) -> Trainer:
    trainer, batch = make_trainer(layouts, form, dtype), make_batch(rows, packed=packed)
    state = trainer.init()
    for loss, gradients, weights in expected(dtype, rows, packed):
        _, actual_gradients = trainer.loss_and_gradients(state, batch)
        state, metrics = trainer.step(state, batch)
        actual_weights = trainer.weights(state)
        errors = {"loss": relative_error(metrics["loss"], loss)}
        for what, actual, wanted in (("gradient", actual_gradients, gradients), ("weight", actual_weights, weights)):
            for module, path in ((m, p) for m in wanted for p in wanted[m]):
                errors[what, module, path] = relative_error(actual[module][path], wanted[module][path])
        worst = max(errors, key=errors.get)
        assert errors[worst] <= TOLERANCE[dtype], (worst, errors[worst])
    return trainer


def check_moves(trainer: Trainer, form: str, packed: bool) -> None:
    """In the programs of the language model keys and values move as the form says; else only ids are gathered."""
    for stage in trainer.stages:
        if stage.module != "llm":
            continue
        program, moves = trainer.compiled.programs[stage.name], stage.layout.context - 1
        # The layers are one loop, whose body is listed once. Gradients move in the backward, ids of documents in both.
        for name, arrays in (("forward", 2 + packed), ("backward", 4 + packed)):
            found = collectives(program.programs[name].text)
            kinds = [each.kind for each in found]
            assert kinds.count("collective-permute") == (arrays * moves if form == "ring" else 0)
            gathered = max((each.result_bytes for each in found if each.kind == "all-gather"), default=0)
            ids = trainer.compiled.inputs[stage.name]
            per_device = max((x.size * 8 // stage.layout.batch_degree for x in ids.values() if x.ndim == 2), default=0)
            if stage.layout.tensor > 1 and stage.layout.sequence_parallel:
                # Rows of one context shard, whole over tensor; over context it would be more than that.
                rows = SAMPLES * ROWS // program_batches(trainer, stage) // stage.layout.context
                per_device = max(per_device, rows * problem.LLM.width * 8)
            assert form == "all_gather" or gathered <= per_device, (stage.name, gathered)


def program_batches(trainer: Trainer, stage) -> int:
    """Into how many parts microbatches and devices split the batch."""
    return trainer.schedule.microbatches * stage.layout.batch_degree


def rows_of(name: str) -> int:
    return 12 if name == "disjoint-context3" else ROWS


@pytest.mark.parametrize(("name", "form", "packed"), others_slow(QUICK, QUICK[:1]))
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_split_sequences_equal_one_device_and_gather_no_activation(name, form, packed, dtype):
    check_moves(check(LAYOUTS[name], form, packed, dtype, rows_of(name)), form, packed)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(("name", "form", "packed"), list(itertools.product(LAYOUTS, FORMS, [True, False])))
@pytest.mark.parametrize("dtype", ["float32", "float64"], indirect=True)
def test_all_layouts_forms_and_packings_equal_one_device(name, form, packed, dtype):
    check(LAYOUTS[name], form, packed, dtype, rows_of(name))


@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
def test_packed_documents_do_not_see_each_other(dtype):
    """The reference itself: the loss of packed documents is that of each in a row of its own."""
    skeleton, params, buffers = flatten_module(problem.make_graph().build("llm", 0))
    model = skeleton.assemble(jax.tree.map(lambda x: x.astype(dtype), params), buffers)
    tokens = np.arange(12, dtype=np.int32)[None] * 3 % problem.VOCABULARY
    weights, ids = np.ones((1, 12)), np.array([[5, 5, 5, 5, 2, 2, 2, 9, 9, 9, 9, 9]], np.int32)
    parts = slice(0, 4), slice(4, 7), slice(7, 12)

    @jax.jit
    def losses():
        def loss(rows, **more):
            return model(tokens=tokens[:, rows], labels=tokens[:, rows], loss_weights=weights[:, rows], **more)["loss"]

        return loss(slice(None), segments=ids), sum(map(loss, parts)), loss(slice(None))

    packed, apart, in_sight = losses()
    np.testing.assert_allclose(packed, apart, rtol=1e-12)
    assert abs(packed - in_sight) > 1e-3


def test_a_sequence_that_does_not_divide_is_refused_before_any_program_is_compiled():
    trainer = make_trainer(LAYOUTS["llm-context4-tensor2"], "ring", "float32")
    with pytest.raises(BatchError) as caught:
        trainer.compile(make_batch(12, packed=False))
    assert str(caught.value) == (
        "module 'llm': a causal sequence needs seq % (2*context) = 0, but 12 % (2*4) = 4; "
        "pad sequences to 16 positions or change context=4"
    )
