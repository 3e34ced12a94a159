"""Bytes of a step against what its layout means."""

import pytest

from hetjax.meshes import Layout
from hetjax.tools.bench.traffic import bytes_of_step
from tests.harness.compiled_trainer import compiled_step, make_trainer


def test_modules_on_one_device_send_nothing_but_what_crosses():
    step = compiled_step(Layout(devices="0"), Layout(devices="1"))
    (boundary,) = step.boundaries.values()
    tokens = boundary.ways[0].forward.plan.bytes_moved
    assert tokens > 0
    assert bytes_of_step(step) == {"vision": 0, "llm": 0, "boundaries": 2 * 2 * tokens}


@pytest.mark.slow
@pytest.mark.quick
def test_data_parallel_modules_add_up_their_gradients_once_however_many_microbatches():
    layouts = Layout(devices="0-1", data=2), Layout(devices="2-3", data=2)
    few, many = (bytes_of_step(compiled_step(*layouts, microbatches=count)) for count in (1, 4))
    assert few["vision"] == many["vision"] > 0
    weights = sum(aval.size * 4 for aval in make_trainer(*layouts).stages[0].params.values())
    # Two devices exchange halves and then sums; a norm's sum of squares beside that is small.
    assert few["vision"] == pytest.approx(2 * weights, rel=0.01)
