"""Values that no program takes are refused on the host, with their place."""

import dataclasses

import numpy as np
import optax
import pytest

from hetjax import ModuleGraph, Trainer
from hetjax.errors import BatchError
from hetjax.meshes import Layout, Placement
from hetjax.models import DecoderConfig, LanguageModel
from hetjax.stages.input_values import check_values
from hetjax.stages.row_subset import RowSubset

CONFIG = DecoderConfig(vocab_size=40, width=8, layers=2, heads=2, kv_heads=2, head_dim=4, mlp_width=8)


@pytest.fixture(scope="module")
def stages():
    """Two stages of a language model: tokens enter the first, labels the last."""
    graph = ModuleGraph({"llm": lambda rngs: LanguageModel(CONFIG, rngs=rngs)})
    return Trainer(graph, Placement({"llm": Layout(devices="0-1", stage=2)}), optimizer=optax.sgd(1)).stages


def text(**changes):
    ids = np.arange(12, dtype=np.int32).reshape(3, 4)
    return {"llm": {"tokens": ids, "labels": ids, "loss_weights": np.ones((3, 4), np.float32), **changes}}


def with_one(array, place, value):
    array = np.array(array)
    array[place] = value
    return array


@pytest.mark.parametrize("port", ["tokens", "labels"])
@pytest.mark.parametrize("bad", [-1, 40])
def test_an_id_outside_of_the_table_is_refused(stages, port, bad):
    good = text()
    check_values(good, stages)
    changed = text(**{port: with_one(good["llm"][port], (1, 2), bad)})
    words = rf"module 'llm': input '{port}' has ids from {bad} to {bad}, outside of 0 to 39, the first at \[1, 2\]; use"
    with pytest.raises(BatchError, match=words):
        check_values(changed, stages)
    subset = {"llm": {name: RowSubset(array, (1, 2, 5), 6) for name, array in changed["llm"].items()}}
    with pytest.raises(BatchError, match=f"input '{port}'"):
        check_values(subset, stages)


def test_a_label_that_counts_nothing_may_be_anything(stages):
    good = text()
    ignored = with_one(good["llm"]["labels"], (0, 0), -100)
    with pytest.raises(BatchError, match="from -100 to -100"):
        check_values(text(labels=ignored), stages)
    check_values(text(labels=ignored, loss_weights=with_one(np.ones((3, 4)), (0, 0), 0)), stages)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_refused_and_large_ones_are_not(bad):
    large = np.full((16, 4), 3e38, np.float32)
    check_values({"encoder": {"x": large}}, ())
    words = r"'encoder': input 'x' has 1 values that are no finite number, the first at \[5, 1\]"
    with pytest.raises(BatchError, match=words):
        check_values({"encoder": {"x": with_one(large, (5, 1), bad)}}, ())


def test_a_trainer_refuses_them_before_any_device_work():
    graph = ModuleGraph({"llm": lambda rngs: LanguageModel(dataclasses.replace(CONFIG, layers=1), rngs=rngs)})
    trainer = Trainer(graph, Placement({"llm": Layout(devices="0")}), optimizer=optax.sgd(1))
    state = trainer.init(seed=0)
    with pytest.raises(BatchError, match="input 'tokens' has ids from -1 to -1"):
        trainer.step(state, text(tokens=np.full((3, 4), -1, np.int32)))
    trainer.step(state, text())  # the state was not consumed
