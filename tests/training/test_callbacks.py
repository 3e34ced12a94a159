"""Functions of a program at the events of a run: what they are given, and errors in them."""

import pytest

import hetjax
from hetjax.errors import CallbackError, ConfigError
from hetjax.training.callbacks import Callbacks, Events, StepEvent
from tests.harness.digits_run import CONFIG, ONE_DEVICE, write_dataset
from tests.harness.paths import ROOT

STEP = StepEvent(step=3, metrics={"loss": 1.0}, is_main=True)


class Record:
    """Keeps what happens, and the norm of a weight when the state is at hand."""

    def __init__(self):
        self.events, self.answers = [], []

    def on_step(self, event):
        self.events.append(("step", event.step, event.metrics["loss"]))

    def on_evaluate(self, event):
        (result,) = event.results
        self.answers += [each.answer for each in result.given.answered]
        module = hetjax.module_of(event.state, "llm")
        self.events.append(("evaluate", event.step, event.numbers["eval/loss"], type(module).__name__))


def test_a_run_calls_a_class_and_functions_at_each_of_its_events(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    data = str(write_dataset(tmp_path / "data", samples=8))
    record, saved, twice = Record(), [], []
    arguments = [
        *("--config", CONFIG, "--data.train", data, "--data.eval", data, "--run_dir", str(tmp_path / "run")),
        *("--data.batch_size", "8", "--steps", "3", "--eval.every", "2", "--checkpoint_every", "2", *ONE_DEVICE),
        *("--eval.max_new_tokens", "2", "--model.llm.layers", "1", "--model.vision.layers", "1"),
    ]
    functions = Callbacks(on_save=saved.append, on_step=lambda event: twice.append(event.step))
    last = hetjax.train(arguments, callbacks=[record, functions])
    assert [event[:2] for event in record.events] == [
        *[("step", 1), ("evaluate", 2), ("step", 2), ("evaluate", 3), ("step", 3)]
    ]
    assert record.events[-1][2] == last["loss"] and record.events[-2][2:] == (last["eval/loss"], "LanguageModel")
    assert twice == [1, 2, 3] and len(record.answers) == 16
    assert [event.step for event in saved] == [2, 3]
    assert all(event.is_main and (event.path / "description" / "metadata").exists() for event in saved)


def test_an_exception_in_a_callback_is_named_with_its_event_and_step():
    def late(event):
        raise KeyError("accuracy")

    with pytest.raises(CallbackError, match=r"Callbacks\.on_step failed at step 3: KeyError: 'accuracy'") as raised:
        Events([Record(), Callbacks(on_step=late)]).on_step(STEP)
    assert isinstance(raised.value.__cause__, KeyError)


def test_an_object_that_no_event_calls_is_refused():
    class Misspelt:
        def on_steps(self, event):
            pass

    for wrong, problem in ((Misspelt(), "the callback Misspelt has the method on_steps"), (print, "has none of the")):
        with pytest.raises(ConfigError, match=f"{problem}.* the events of a run are on_step, on_evaluate, on_save"):
            Events([wrong])
