"""What a step holds at once, counted from the buffers that are alive after each dispatch."""

import gc
from collections import defaultdict

import jax
import numpy as np
import optax

from hetjax import ModuleGraph, Trainer
from hetjax.meshes import Layout, Placement
from hetjax.models import DecoderConfig, LanguageModel

STAGES, MICROBATCHES, ROWS = 4, 8, 12
LLM = DecoderConfig(vocab_size=40, width=24, layers=STAGES, heads=4, kv_heads=2, head_dim=6, mlp_width=56)


def make_trainer(schedule: str, **layout) -> Trainer:
    graph = ModuleGraph({"llm": lambda rngs: LanguageModel(LLM, rngs=rngs)})
    placement = Placement({"llm": Layout(devices="0-3", stage=STAGES, **layout)})
    return Trainer(graph, placement, optimizer=optax.sgd(0.1), schedule=schedule, microbatches=MICROBATCHES)


def make_batch():
    tokens = np.random.default_rng(0).integers(0, LLM.vocab_size, (2 * MICROBATCHES, ROWS)).astype(np.int32)
    return {"llm": {"tokens": tokens, "labels": tokens, "loss_weights": np.ones(tokens.shape, np.float32)}}


def peak_residual_bytes(trainer: Trainer) -> dict[str, tuple[int, int]]:
    """{stage: (most bytes of residuals alive at once, bytes that one microbatch keeps)}.

    Counted are arrays on the stage's mesh of shapes that only residuals have.
    """
    gc.collect()  # arrays of other tests
    trainer.compile(make_batch())
    state = trainer.init()
    kinds, one = {}, {}
    for name, program in trainer.compiled.programs.items():
        others = {
            aval.shape for avals in (program.inputs, program.outputs, program.stage.params) for aval in avals.values()
        }
        own = [aval for aval in program.residual_shapes if aval.shape not in others]
        kinds[name] = program.stage.mesh, {(aval.shape, aval.dtype) for aval in own}
        one[name] = sum(aval.size * aval.dtype.itemsize for aval in own)
    peak: dict[str, int] = defaultdict(int)

    def look(action, result):
        alive = jax.live_arrays()
        for name, (mesh, shapes) in kinds.items():
            found = (
                x for x in alive if x.sharding.device_set == set(mesh.devices.flat) and (x.shape, x.dtype) in shapes
            )
            peak[name] = max(peak[name], sum(x.nbytes for x in found))

    trainer.step(state, make_batch(), observe=look)
    return {name: (peak[name], one[name]) for name in kinds}


def test_a_stage_keeps_residuals_of_as_many_microbatches_as_stages_come_behind_it_and_itself():
    for index, (peak, one) in enumerate(peak_residual_bytes(make_trainer("1f1b")).values()):
        assert one > 10_000
        assert peak == (STAGES - index) * one


def test_gpipe_keeps_those_of_all_microbatches():
    """The count is sensitive: a schedule that keeps more shows more."""
    for peak, one in peak_residual_bytes(make_trainer("gpipe")).values():
        assert peak == MICROBATCHES * one
