"""Settings that are written down are the same when they are read again."""

import jsonargparse
import pytest

from hetjax.config.plain_yaml import plain_yaml


@pytest.mark.parametrize(
    "text", ["2e3", "1_000", "1", "-3", "1.5", ".5", "1e-4", "no", "null", "a: b", "", "0x1f", "12:30"]
)
def test_a_text_stays_a_text(text):
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--value", type=dict)
    found = parser.parse_string(plain_yaml({"value": {"inner": {"x": text}}}))
    assert found.value == {"inner": {"x": text}}
