"""How answers to held-out questions are drawn, as settings of a run."""

import pytest

from hetjax.errors import ConfigError
from hetjax.models import ModelError, Sampling


def test_the_most_likely_tokens_are_taken_unless_a_temperature_is_given(make_config):
    assert make_config().eval.sampling == Sampling(temperature=0)
    changes = "--eval.sampling.temperature", "0.7", "--eval.sampling.top_p", "0.9", "--eval.sampling.top_k", "40"
    assert make_config(*changes).eval.sampling == Sampling(temperature=0.7, top_p=0.9, top_k=40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--eval.sampling.top_p", "0.9"), "top_p = 0.9 and top_k = 0 change nothing; give a temperature too"),
        (("--eval.sampling.temperature", "-1"), "temperature = -1.0 must be 0 or more"),
    ],
)
def test_settings_without_sense_are_refused(make_config, changes, message):
    with pytest.raises((ConfigError, ModelError), match=message):
        make_config(*changes)
