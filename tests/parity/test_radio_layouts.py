"""RADIO with images and videos into a language model, in layouts that split its rows, against one device."""

import functools

import numpy as np
import pytest
from flax import nnx

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.meshes import Layout, Placement
from hetjax.models import DecoderConfig, LanguageModel, RadioConfig, RadioEncoder
from tests.harness.choices import others_slow
from tests.harness.models.radio_cases import image_inputs, images, video, video_inputs
from tests.harness.parity import problem
from tests.harness.parity.comparison import TOLERANCE
from tests.harness.parity.oracle import relative_error, train_on_one_device

SAMPLES, ROWS, STEPS, VOCABULARY = 8, 32, 2, 24
RADIO = RadioConfig(
    patch_size=2,
    width=16,
    layers=2,
    heads=4,
    mlp_width=32,
    position_side=4,
    projector_width=32,
    output_width=16,
)
LLM = DecoderConfig(vocab_size=VOCABULARY, width=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp_width=16)

# {name: layout of the encoder}; the language model is on the same eight devices.
LAYOUTS = {
    "data2-context2-tensor2": Layout(data=2, context=2, tensor=2),
    "data2-tensor4": Layout(data=2, tensor=4),
    "fsdp4-tensor2": Layout(fsdp=4, tensor=2),
    "data2-context4-gathered": Layout(data=2, context=4, context_attention="all_gather"),
    "stage2-data2-context2": Layout(stage=2, data=2, context=2),
}


@functools.cache
def make_graph() -> ModuleGraph:
    modules = {"vision": RadioEncoder(RADIO, rngs=nnx.Rngs(1)), "llm": LanguageModel(LLM, rngs=nnx.Rngs(2))}
    return ModuleGraph(modules, [Edge("vision.tokens", "llm.image_tokens")])


@functools.cache
def make_batch():
    """Two images and a video a sample, of a size that differs; their tokens go to the first rows."""
    grids = [((2, 4), (2, 2)), ((4, 2), (2, 2)), ((2, 6),), ((6, 2), (2, 2))] * 2
    pictures = [images(each, side=2, seed=i) for i, each in enumerate(grids)]
    vision, of_images = image_inputs(RADIO, pictures, rows=48)
    clips, of_videos = video_inputs(RADIO, [[video(4 - i % 2 * 2, (2, 4), side=2)] for i in range(SAMPLES)], rows=48)
    vision.update(clips)
    positions = np.full((SAMPLES, 24), ROWS, np.int32)
    for sample, (first, second) in enumerate(zip(of_images, of_videos, strict=True)):
        own = np.concatenate([*first, *(12 + tokens for tokens in second)])
        positions[sample, own] = 2 + np.arange(len(own))
    random = np.random.default_rng(0)
    ids = random.integers(0, VOCABULARY, (2, SAMPLES, ROWS)).astype(np.int32)
    weights = (random.random((SAMPLES, ROWS)) < 0.5).astype(np.float32)
    llm = {"tokens": ids[0], "labels": ids[1], "loss_weights": weights, "image_positions": positions}
    return {"vision": vision, "llm": llm}


@functools.cache
def expected(dtype: str):
    return train_on_one_device(make_graph(), make_batch(), problem.make_optimizer(), steps=STEPS, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
@pytest.mark.parametrize("name", others_slow(LAYOUTS, []))
def test_losses_gradients_and_weights_equal_one_device(name, dtype):
    trainer = Trainer(
        make_graph(),
        Placement({"vision": LAYOUTS[name], "llm": Layout(data=2, tensor=2, context=2)}),
        optimizer=problem.make_optimizer(),
        schedule="1f1b",
        microbatches=2,
        param_dtype=dtype,
        compute_dtype=dtype,
    )
    state, batch = trainer.init(), make_batch()
    for loss, gradients, weights in expected(dtype):
        _, actual_gradients = trainer.loss_and_gradients(state, batch)
        state, metrics = trainer.step(state, batch)
        assert relative_error(metrics["loss"], loss) <= TOLERANCE[dtype]
        for actual, wanted in ((actual_gradients, gradients), (trainer.weights(state), weights)):
            for module, path in ((m, p) for m in wanted for p in wanted[m]):
                error = relative_error(actual[module][path], wanted[module][path])
                assert error <= TOLERANCE[dtype], (module, path, error)
