"""Packed rows, rows of several shapes, and batches without any image train as one sample a row on one device does."""

import dataclasses
import functools

import numpy as np
import optax
import PIL.Image
import pytest
from flax import nnx

from hetjax import Edge, ModuleGraph, Trainer
from hetjax.config.build import shapes_of_rows
from hetjax.data import DataConfig, TrainData, load_tokenizer
from hetjax.data.chat import ProcessorConfig
from hetjax.meshes import Layout, Placement
from hetjax.models import LanguageModel, VisionEncoder
from tests.harness.compile_quickly import quickly
from tests.harness.count_compiles import count_compiles
from tests.harness.dataset_files import write_jsonl
from tests.harness.parity.oracle import relative_error, train_on_one_device
from tests.harness.parity.problem import LLM, VISION, make_optimizer
from tests.harness.sample_loaders import make_loader

SAMPLES, SEQUENCE = 12, 448


@functools.cache
@quickly()
def make_graph():
    llm = dataclasses.replace(LLM, vocab_size=load_tokenizer(None).vocab_size)
    modules = {"vision": VisionEncoder(VISION, rngs=nnx.Rngs(1)), "llm": LanguageModel(llm, rngs=nnx.Rngs(2))}
    return ModuleGraph(modules, [Edge("vision.tokens", "llm.image_tokens")])


@pytest.fixture
def sources(tmp_path):
    """Samples with no, one or two images, and the ones with none among them, in files of their own."""
    rng, records = np.random.default_rng(0), []
    for i in range(SAMPLES):
        names = [f"{i}-{k}.png" for k in range(i % 3)]
        for name in names:
            PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / name)
        question = "?" * int(rng.integers(1, 30))
        records.append({"prompt": "<image>" * len(names) + question, "completion": str(i) * (1 + i), "images": names})
    everything = write_jsonl(tmp_path / "all.jsonl", records)
    return {"all": everything, "text": write_jsonl(tmp_path / "text.jsonl", records[::3] * 3)}


def make_data(path, *, batch_size, shapes=1, **processor):
    config = DataConfig(
        train=str(path), seq_len=SEQUENCE, batch_size=batch_size, shuffle=False, epochs=1, workers=0, shapes=shapes,
        processor=ProcessorConfig(**{"images": 2, "packing_window": 0, **processor}),
    )  # fmt: skip
    return TrainData(make_loader(config, encoders={"vision": VISION}))


def gradients_of(trainer, arrays):
    """The loss and gradients of what is the whole of the samples."""
    loss, gradients = trainer.loss_and_gradients(trainer.init(0), arrays)
    return float(loss), gradients


def check(found, wanted):
    assert found[0] == pytest.approx(wanted[0], rel=1e-10)
    for module, arrays in wanted[1].items():
        for path, array in arrays.items():
            assert relative_error(found[1][module][path], array) < 1e-10, (module, path)


def make_trainer(layouts=None):
    layouts = layouts or {"vision": Layout(devices="0"), "llm": Layout(devices="0")}
    return Trainer(make_graph(), Placement(layouts), optimizer=make_optimizer(), param_dtype="float64")


def test_packed_rows_equal_a_sample_a_row_on_one_device(sources, float64):
    (alone,) = make_data(sources["all"], batch_size=SAMPLES)
    (packed,) = make_data(sources["all"], batch_size=2, packed=8, images=8)
    assert packed.samples == alone.samples == SAMPLES and packed.use == alone.use
    wanted = train_on_one_device(make_graph(), alone.arrays, optax.sgd(0.1), steps=1, dtype="float64")[0]
    trainer = make_trainer({"vision": Layout(devices="0-1", data=2), "llm": Layout(devices="1-2", tensor=2)})
    check(gradients_of(trainer, packed.arrays), wanted)


@pytest.mark.slow
@pytest.mark.quick
def test_batches_without_images_and_of_any_shape_run_what_was_compiled(sources, float64):
    data, trainer = make_data(sources["all"], batch_size=4, shapes=2), make_trainer()
    data.choose_shapes(work=lambda: {"llm": 1.0, "vision": 9.0}, splits={})
    assert [shape.most.media["images"] for shape in data.shapes] == [1, 2]
    trainer.compile(*(shapes_of_rows(shape, 4) for shape in reversed(data.shapes)))
    by_size = {batch.capacity.media["images"]: batch for batch in data}
    batches = [by_size[4], by_size[8], next(make_data(sources["text"], batch_size=4))]
    gradients_of(trainer, batches[0].arrays)
    with count_compiles() as compiled:
        found = [gradients_of(trainer, batch.arrays) for batch in batches]
    assert not compiled
    for batch, own in zip(batches, found, strict=True):
        check(own, train_on_one_device(make_graph(), batch.arrays, optax.sgd(0.1), steps=1, dtype="float64")[0])
    # Without an image the language model learns what it would alone, and the encoder nothing.
    text = {name: array for name, array in batches[-1].arrays["llm"].items() if name != "image_positions"}
    assert not batches[-1].arrays["vision"]["images"].any()
    llm = ModuleGraph({"llm": make_graph().modules["llm"]})
    wanted = train_on_one_device(llm, {"llm": text}, optax.sgd(0.1), steps=1, dtype="float64")[0]
    check(found[-1], wanted)
    assert not any(gradient.any() for gradient in found[-1][1]["vision"].values())
