"""Callbacks that fail, and objects that are none (tests/training/test_observed_run.py has a run call some)."""

import pytest

from hetjax.errors import CallbackError, ConfigError
from hetjax.training.callbacks import Callbacks, Events, StepEvent

STEP = StepEvent(step=3, metrics={"loss": 1.0}, is_main=True)


def test_an_exception_in_a_callback_is_named_with_its_event_and_step():
    def late(event):
        raise KeyError("accuracy")

    with pytest.raises(CallbackError, match=r"Callbacks\.on_step failed at step 3: KeyError: 'accuracy'") as raised:
        Events([Callbacks(on_save=print), Callbacks(on_step=late)]).on_step(STEP)
    assert isinstance(raised.value.__cause__, KeyError)


def test_an_object_that_no_event_calls_is_refused():
    class Misspelt:
        def on_steps(self, event):
            pass

    for wrong, problem in ((Misspelt(), "the callback Misspelt has the method on_steps"), (print, "has none of the")):
        with pytest.raises(ConfigError, match=f"{problem}.* the events of a run are on_step, on_evaluate, on_save"):
            Events([wrong])
