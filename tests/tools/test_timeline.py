import json

import numpy as np
import pytest
from PIL import Image

from hetjax.errors import ConfigError
from hetjax.tools.timeline import timeline


def test_the_estimate_gives_the_longest_forward_one_unit_and_backwards_two_forwards(make_config, tmp_path):
    numbers = timeline(config=make_config(), out=str(tmp_path / "timeline.png")).numbers
    vision, llm = numbers["stages"]["vision"], numbers["stages"]["llm"]
    assert (llm["forward"], llm["backward"]) == (1, 2)
    assert vision["backward"] == pytest.approx(2 * vision["forward"])
    assert 0 < vision["forward"] < 1
    # Two microbatches through the language model, then the last one back through the encoder, and an update.
    expected = vision["forward"] + 2 * 3 + vision["backward"] + 0.1
    assert numbers["makespan"] == pytest.approx(expected)
    assert llm["idle_share"] == pytest.approx(1 - 6.1 / expected)
    assert numbers["peak_live_microbatches"] == 2
    assert np.asarray(Image.open(tmp_path / "timeline.png")).std() > 10


def test_two_devices_halve_the_length_of_a_program(make_config, tmp_path):
    out = str(tmp_path / "timeline.json")
    two = timeline(config=make_config(), out=out).numbers["stages"]["vision"]["forward"]
    config = make_config("--placement.vision", "{devices: '0', data: 1}")
    one = timeline(config=config, out=out).numbers["stages"]["vision"]["forward"]
    assert one == pytest.approx(2 * two)


def test_a_trace_has_an_event_for_each_action(make_config, tmp_path):
    out, trace = tmp_path / "new" / "timeline.svg", tmp_path / "trace.json"
    numbers = timeline(config=make_config("--schedule", "gpipe"), out=str(out), trace=str(trace)).numbers
    assert numbers["written"] == [str(out), str(trace)]
    assert "<svg" in out.read_text()
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    kinds = [event["cat"] for event in events]
    assert {kind: kinds.count(kind) for kind in kinds} == {"forward": 4, "backward": 4, "transfer": 4, "update": 2}


def test_measured_programs_take_seconds_that_make_up_the_makespan(make_config, tmp_path):
    numbers = timeline(config=make_config(), out=str(tmp_path / "timeline.json"), measured=True).numbers
    llm = numbers["stages"]["llm"]
    assert numbers["unit"] == "seconds"
    assert 2 * (llm["forward"] + llm["backward"]) + llm["update"] <= numbers["makespan"] < 10
    assert min(llm["forward"], llm["backward"], llm["update"]) > 0


def test_a_frozen_encoder_has_no_backward_in_the_timeline(make_config, tmp_path):
    config = make_config("--optimizer.frozen", "[vision]")
    stages = timeline(config=config, out=str(tmp_path / "timeline.json")).numbers["stages"]
    assert stages["vision"]["backward"] is stages["vision"]["update"] is None


def test_a_file_that_is_no_picture_is_refused(make_config):
    with pytest.raises(ConfigError, match=r"'timeline.txt' ends in '.txt'; give it one of the endings .png, .svg"):
        timeline(config=make_config(), out="timeline.txt")
