import json

import pytest

from hetjax.schedule import Costs, bubble_fill, gpipe, one_f_one_b, simulate, zero_bubble
from hetjax.schedule.actions import HOST_COPIES
from hetjax.schedule.host_memory.offload import offload_modules
from hetjax.schedule.trace import write_trace


@pytest.fixture
def timeline(named_graph):
    return simulate(one_f_one_b(named_graph("long-encoder"), 3), Costs(forward=0.001, backward=0.002, transfer=1e-4))


@pytest.fixture
def events(timeline, tmp_path):
    write_trace(timeline, tmp_path / "trace.json")
    return json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_events_are_the_spans_in_microseconds(timeline, events):
    complete = [event for event in events if event["ph"] == "X"]
    assert len(complete) == len(timeline.spans)
    for event, span in zip(complete, timeline.spans, strict=True):
        assert event["ts"] == pytest.approx(span.start * 1e6)
        assert event["ts"] + event["dur"] == pytest.approx(span.end * 1e6)
        assert event["cat"] == span.action.kind.value
        assert str(span.action) in event["name"]
        assert event["args"]["stage"] == span.stage


def test_every_event_lies_on_a_named_thread_of_a_named_process(events):
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sorted(processes.values()) == ["llm.0", "llm.1", "vision.0", "vision.1"]
    for event in events:
        if event["ph"] == "X":
            assert processes[event["pid"]] == event["args"]["stage"]
            wanted = f"transfers {event['args']['edge']}" if event["cat"] == "transfer" else "programs"
            assert threads[event["pid"], event["tid"]] == wanted


def test_processes_list_their_devices(named_graph, tmp_path):
    write_trace(simulate(one_f_one_b(named_graph("shared-devices"), 1)), tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert names == ["vision on devices 0, 1, 2, 3", "llm.0 on devices 0, 1", "llm.1 on devices 2, 3"]


def test_pieces_that_run_apart_are_on_their_devices(named_graph, tmp_path):
    timeline = simulate(bubble_fill(named_graph("independent"), 2))
    write_trace(timeline, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert names == ["vision, llm.0 on devices 0", "vision, llm.1 on devices 1"]
    for device in (0, 1):
        mine = [(e["name"], e["ts"]) for e in events if e["ph"] == "X" and e["pid"] == device and e["tid"] == 0]
        spans = [span for span in timeline.spans if device in span.devices]
        assert mine == [(f"{s.stage} {s.action}", pytest.approx(s.start * 1e6)) for s in spans]


def test_the_parts_of_a_backward_have_names_of_their_own(tmp_path):
    write_trace(simulate(zero_bubble("ab", 2)), tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    parts = [e["name"] for e in events if e.get("cat") in ("backward_input", "backward_weight")]
    assert parts == ["b I0", "b I1", "b W0", "b W1"]


def test_host_copies_have_a_thread_for_each_direction(named_graph, tmp_path):
    schedule = offload_modules(gpipe(named_graph("long-encoder"), 2), ["vision"])
    timeline = simulate(schedule, Costs(offload=0.25, reload=0.5))
    write_trace(timeline, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    copies = [e for e in events if e["cat" if "cat" in e else "ph"] in ("offload", "reload")]
    assert len(copies) == sum(action.kind in HOST_COPIES for action in schedule.actions) > 0
    for event in copies:
        assert threads[event["pid"], event["tid"]] == f"{event['cat']} (host copies)"
        assert event["args"]["part"] in ("residuals", "weights", "optimizer")
        assert event["dur"] == {"offload": 0.25e6, "reload": 0.5e6}[event["cat"]]
