import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from hetjax.cli import main
from hetjax.config.build import batch_shapes
from hetjax.errors import ConfigError
from hetjax.execution.flops import estimated_costs
from hetjax.schedule import check, simulate, zero_bubble
from hetjax.tools.given_costs import GivenCosts
from hetjax.tools.timeline import _numbers, _table, timeline


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


def test_a_module_s_own_microbatches_are_settings_and_figures(make_config, tmp_path):
    config = make_config("--microbatches", "{llm: 4, vision: 2}")
    one, window = (timeline(config=each, out=str(tmp_path / "timeline.svg")) for each in (make_config(), config))
    assert window.numbers["label"] == "1f1b, 4 microbatches (vision 2)"
    stages = window.numbers["stages"]
    assert {name: stage["microbatches"] for name, stage in stages.items()} == {"vision": 2, "llm": 4}
    # Two microbatches in the first run, as large as two of the four.
    assert stages["vision"]["forward"] == pytest.approx(2 * one.numbers["stages"]["vision"]["forward"])
    assert "1f1b, 4 microbatches (vision 2): makespan" in window.shown[0].title


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


def test_given_costs_replace_the_estimate(make_config, tmp_path):
    costs = GivenCosts(forward=2, backward=5, update=1, of={"vision forward": 3})
    numbers = timeline(config=make_config(), out=str(tmp_path / "timeline.svg"), costs=costs).numbers
    vision, llm = numbers["stages"]["vision"], numbers["stages"]["llm"]
    assert (vision["forward"], vision["backward"], llm["forward"], llm["backward"]) == (3, 5, 2, 5)
    # vision F0 0-3, F1 3-6; llm F0 3-5, B0 5-10, F1 10-12, B1 12-17; vision B1 17-22; updates
    assert numbers["makespan"] == 23
    assert vision["idle_share"] == pytest.approx(1 - (2 * 3 + 2 * 5 + 1) / 23)
    assert numbers["idle_share"] == pytest.approx(1 - (17 + 15) / 46)
    assert "time (units)" in (tmp_path / "timeline.svg").read_text()


def test_costs_are_given_on_the_command_line(tiny_yaml, tmp_path, capsys):
    out = str(tmp_path / "timeline.json")
    costs = ["--costs.forward", "2", "--costs.of", "{vision forward: 3}"]
    main(["timeline", "--config", str(tiny_yaml), "--out", out, *costs, "--json"])
    stages = json.loads(capsys.readouterr().out.splitlines()[-1])["stages"]
    assert (stages["vision"]["forward"], stages["llm"]["forward"], stages["llm"]["backward"]) == (3, 2, 2)


def test_costs_are_either_given_or_measured(make_config):
    with pytest.raises(ConfigError, match="measured is true and costs are given; leave one of them out"):
        timeline(config=make_config(), measured=True, costs=GivenCosts())


def test_the_two_parts_of_a_backward_are_estimated_at_a_forward_each(make_trainer, make_config):
    trainer = make_trainer()
    config = make_config()
    costs = estimated_costs(trainer.trace(batch_shapes(config.data, config.model)).step)
    split = simulate(zero_bubble(trainer.schedule.graph, 2), costs)
    parts = {str(s.action): s.end - s.start for s in split.spans if s.stage == "llm"}
    assert (parts["F0"], parts["I0"], parts["W1"]) == pytest.approx((1, 1, 1))
    numbers = _numbers(split, check(split.schedule), "longest forward")
    assert numbers["stages"]["llm"]["backward"] is None
    parts = [numbers["stages"]["llm"][f"backward_{part}"] for part in ("input", "weight")]
    assert parts == pytest.approx([1, 1])
    console = Console(width=120, file=io.StringIO())
    console.print(_table(numbers))
    assert "1 + 1" in console.file.getvalue()


def test_a_frozen_encoder_has_no_backward_in_the_timeline(make_config, tmp_path):
    config = make_config("--optimizer.frozen", "[vision]")
    stages = timeline(config=config, out=str(tmp_path / "timeline.json")).numbers["stages"]
    assert stages["vision"]["backward"] is stages["vision"]["update"] is None


def test_a_file_that_is_no_picture_is_refused(make_config):
    with pytest.raises(ConfigError, match=r"'timeline.txt' ends in '.txt'; give it one of the endings .png, .svg"):
        timeline(config=make_config(), out="timeline.txt")
