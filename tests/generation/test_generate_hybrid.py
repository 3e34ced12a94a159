"""Generation and training of the hybrid model on several meshes, also with an encoder that prunes its tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.generation.generator import Generator
from hetjax.meshes import Layout, Placement
from hetjax.models.parts.video_pruning import prune
from tests.harness.choices import others_slow
from tests.harness.models.generate import generate
from tests.harness.models.tiny_hybrid import HYBRID, build_hybrid
from tests.harness.parity.oracle import relative_error, steps_on_one_device

# B prompts, which no batch degree below divides · S longest prompt · R new tokens
B, S, R = 5, 12, 5
LENGTHS = np.array([8, 12, 7, 9, 10])
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, HYBRID.vocab_size, (B, S)).astype(np.int32)
LAYOUTS = {
    "data2-tensor2-stage2": Layout(data=2, tensor=2, stage=2, layers=[2, 1]),
    "expert4-tensor2": Layout(expert=4, tensor=2),
    "stage3-fsdp2": Layout(devices="0-5", stage=3, fsdp=2),
}


class Video(nnx.Module):
    """Three tubelets of two tokens a sample, of which two tokens are pruned; "kept" says which are left."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (3, HYBRID.width)))

    def __call__(self, frames):
        tokens = frames @ self.kernel[...]
        tubelets = jnp.broadcast_to(jnp.array([0, 0, 1, 1, 2, 2]), tokens.shape[:2])
        tokens, kept = prune(tokens, tubelets, jnp.ones(tubelets.shape, bool), 0.3, 4)
        return {"tokens": tokens, "kept": kept}


EDGES = [Edge("vision.tokens", "llm.image_tokens"), Edge("vision.kept", "llm.image_kept", gradient=False)]
POSITIONS = np.tile(np.arange(1, 7, dtype=np.int32), (B, 1))
FRAMES = RNG.normal(size=(B, 6, 3)).astype(np.float32)


def answers_on(graph, placement, batch):
    trainer = Trainer(graph, Placement(placement), optimizer=optax.sgd(0.1))
    return Generator(trainer, max_new_tokens=R, stop_token=-1).generate(trainer.init(), batch, LENGTHS)


@functools.cache
def on_one_device() -> np.ndarray:
    run = nnx.jit(functools.partial(generate, max_new_tokens=R, stop_token=-1))
    return np.asarray(run(build_hybrid(), TOKENS, LENGTHS))


@pytest.mark.parametrize("name", others_slow(LAYOUTS, ["data2-tensor2-stage2"]))
def test_answers_equal_one_device(name):
    want = on_one_device()
    assert len(np.unique(want, axis=0)) == B
    got = answers_on(ModuleGraph({"llm": build_hybrid()}), {"llm": LAYOUTS[name]}, {"llm": {"tokens": TOKENS}})
    np.testing.assert_array_equal(got, want)


@pytest.mark.slow
@pytest.mark.quick
def test_answers_to_a_pruned_video_equal_one_device():
    model, video = build_hybrid(), Video(rngs=nnx.Rngs(0))
    seen = video(FRAMES)
    assert len(np.unique(seen["kept"], axis=0)) > 1

    def run(model, tokens, kept):
        return generate(model, TOKENS, LENGTHS, tokens, POSITIONS, image_kept=kept, max_new_tokens=R, stop_token=-1)

    want = np.asarray(nnx.jit(run)(model, seen["tokens"], seen["kept"]))
    graph = ModuleGraph({"vision": video, "llm": model}, EDGES)
    placement = {"vision": Layout(devices="0-1", data=2), "llm": Layout(devices="2-5", stage=2, tensor=2)}
    batch = {"vision": {"frames": FRAMES}, "llm": {"tokens": TOKENS, "image_positions": POSITIONS}}
    np.testing.assert_array_equal(answers_on(graph, placement, batch), want)


@pytest.mark.slow
@pytest.mark.exhaustive  # tests/parity/test_omni.py trains on pruned videos behind a whole encoder
@pytest.mark.quick
def test_training_on_pruned_videos_equals_one_device(float64):
    """Every stage takes the same rows out, and the sequence that is left is what is shared out over the devices."""
    samples, rows = 4, 18
    random = np.random.default_rng(2)
    ids = random.integers(0, HYBRID.vocab_size, (2, samples, rows)).astype(np.int32)
    weights = random.integers(0, 2, (samples, rows)).astype(np.float32)
    llm = {"tokens": ids[0], "labels": ids[1], "loss_weights": weights}
    llm["image_positions"] = np.tile(np.arange(1, 7, dtype=np.int32), (samples, 1))
    llm["segments"] = np.tile((np.arange(rows) > 9).astype(np.int32), (samples, 1))
    batch = {"vision": {"frames": random.normal(size=(samples, 6, 3))}, "llm": llm}
    graph = ModuleGraph({"vision": Video(rngs=nnx.Rngs(0)), "llm": build_hybrid()}, EDGES)
    optimizer = optax.sgd(0.1)
    ((loss, gradients, *_),) = steps_on_one_device(graph, batch, optimizer, steps=1, dtype="float64")
    placement = {"vision": Layout(devices="0-1", data=2), "llm": Layout(devices="4-7", stage=2, context=2)}
    trainer = Trainer(
        graph, Placement(placement), optimizer=optimizer, microbatches=2, param_dtype="float64", compute_dtype="float64"
    )
    got, actual = trainer.loss_and_gradients(trainer.init(), batch)
    assert relative_error(got, loss) < 1e-10
    for module, path in ((name, path) for name, each in gradients.items() for path in each):
        assert relative_error(actual[module][path], gradients[module][path]) < 1e-10, path
