"""Arrays that no program should make, found in the programs of a step by what its layers say of their activations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from hetjax import ModuleGraph, Trainer
from hetjax.fit.advice import verdict
from hetjax.fit.array_rule import array_limits
from hetjax.fit.program_facts import OversizedArray, program_facts
from hetjax.meshes import Layout, Placement
from hetjax.models import MoEConfig
from hetjax.models.dims import SEQUENCE, constrain
from hetjax.models.kernels.attention_mask import Visible
from hetjax.models.kernels.flash_attention import BLOCKED, flash_attention
from hetjax.models.parts.moe import MoE
from tests.harness.fit_reports import FACTS, need, report

SAMPLES, LENGTH, HEADS, WIDTH = 4, 1536, 2, 24


class Attend(nnx.Module):
    """Attention over long rows, with all scores at once or in blocks, and a sum of squares as its loss."""

    def __init__(self, in_blocks: bool, rngs: nnx.Rngs):
        self.map = nnx.Linear(HEADS * WIDTH, HEADS * WIDTH, rngs=rngs)
        self.in_blocks = in_blocks

    def __call__(self, x, loss_weights):
        x = constrain(self.map(x), *SEQUENCE, "embed")
        heads = x.reshape(*x.shape[:2], HEADS, WIDTH)
        with jax.named_scope("attention"):
            if self.in_blocks:
                y = flash_attention(BLOCKED, heads, heads, heads, Visible())
            else:
                scores = jnp.einsum("bshk,bthk->bhst", heads, heads)
                y = jnp.einsum("bhst,bthk->bshk", jax.nn.softmax(scores), heads)
        return {"loss": jnp.sum(jnp.square(y) * loss_weights[:, :, None, None])}


def step_of(module, **inputs):
    trainer = Trainer(
        ModuleGraph({"llm": module}, []), Placement({"llm": Layout(devices="0-1", data=2)}), optimizer=optax.sgd(0.1)
    )
    shapes = {port: jax.ShapeDtypeStruct(shape, np.float32) for port, shape in inputs.items()}
    return trainer, shapes


def facts_of(in_blocks: bool):
    module = Attend(in_blocks, nnx.Rngs(0))
    inputs = {"x": (SAMPLES, LENGTH, HEADS * WIDTH), "loss_weights": (SAMPLES, LENGTH)}
    trainer, shapes = step_of(module, **inputs)
    trainer.compile({"llm": shapes})
    return program_facts(trainer.compiled, ["llm"])


def test_scores_of_whole_rows_are_found_with_their_layer():
    wrong = {each.name: each.oversized for each in facts_of(in_blocks=False)}
    for name in ("llm forward", "llm backward"):
        largest = wrong[name][0]
        assert largest.array.endswith(f"{LENGTH},{LENGTH}]") and largest.layer == "attention"
        assert largest.bytes == SAMPLES // 2 * HEADS * LENGTH**2 * 4 and "is the most" in largest.rule
    assert not wrong["llm update"]


def test_blocks_of_scores_are_as_they_should_be():
    assert all(each.oversized == () for each in facts_of(in_blocks=True))


def test_limits_are_those_of_a_device():
    inputs = {"x": (SAMPLES, LENGTH, HEADS * WIDTH), "loss_weights": (SAMPLES, LENGTH)}
    trainer, shapes = step_of(Attend(True, nnx.Rngs(0)), **inputs)
    step = trainer.trace({"llm": shapes}).step
    limits = array_limits(step.stages["llm"], step.programs["llm"].inputs)
    assert limits.sequence_lengths == {LENGTH}
    assert limits.activation_bytes == SAMPLES // 2 * LENGTH * HEADS * WIDTH * 4
    assert limits.weight_bytes == (HEADS * WIDTH) ** 2 * 4


class Experts(nnx.Module):
    """A mixture of experts, with a sum of squares as its loss."""

    def __init__(self, rngs: nnx.Rngs):
        self.moe = MoE(16, 64, MoEConfig(count=8, top_k=3), rngs=rngs)

    def __call__(self, x, loss_weights):
        return {"loss": jnp.sum(jnp.square(self.moe(x)[0]) * loss_weights[..., None])}


def test_tokens_of_experts_count_as_often_as_they_are_routed():
    trainer, shapes = step_of(Experts(nnx.Rngs(0)), x=(4, 32, 16), loss_weights=(4, 32))
    step = trainer.trace({"llm": shapes}).step
    limits = array_limits(step.stages["llm"], step.programs["llm"].inputs)
    assert limits.activation_bytes == 2 * 32 * 3 * 64 * 4


class Unnamed(nnx.Module):
    """Says nothing of its activations."""

    def __init__(self, rngs: nnx.Rngs):
        self.weight = nnx.Param(jnp.ones(2))

    def __call__(self, x, loss_weights):
        return {"loss": jnp.sum(x[:, :, None] * x[:, None] * loss_weights[:, :, None]) * self.weight[...].sum()}


def test_nothing_is_said_of_a_module_whose_activations_have_no_names():
    trainer, shapes = step_of(Unnamed(nnx.Rngs(0)), x=(4, 2048), loss_weights=(4, 2048))
    step = trainer.trace({"llm": shapes}).step
    limits = array_limits(step.stages["llm"], step.programs["llm"].inputs)
    assert limits.broken_by([object()]) == []


def test_a_report_warns_of_each_array_once_and_names_its_layer_and_the_rule():
    found = OversizedArray(8 * 2**30, "bf16[1,16,16384,16384]", "layers/attention", "two dims of a sequence's length")
    others = tuple(dataclasses.replace(FACTS, name=f"llm {i}", oversized=(found,)) for i in range(2))
    many = tuple(found._replace(array=f"f32[{i}]", bytes=i) for i in range(7))
    lines = verdict(report(need("residuals", 1), programs=(*others, dataclasses.replace(FACTS, oversized=many))))
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert warnings[0] == (
        "warning: llm 0 makes bf16[1,16,16384,16384], 8.0 GiB, in layers/attention, larger than it should be: two dims "
        "of a sequence's length"
    )
    assert len(warnings) == 6 and warnings[-1] == "warning: 3 further arrays are larger than they should be"
