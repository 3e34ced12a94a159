from hetjax.schedule import bubble_fill, colocated, gpipe, interleaved_1f1b, simulate
from hetjax.schedule.lanes import lanes


def names_and_devices(timeline) -> list[tuple[str, tuple]]:
    return [(str(lane), lane.devices) for lane in lanes(timeline)]


def test_a_mesh_is_a_lane_where_its_devices_act_as_one(named_graph):
    assert names_and_devices(simulate(colocated(named_graph("shared-devices"), 2))) == [
        ("vision", (0, 1, 2, 3)),
        ("llm.0", (0, 1)),
        ("llm.1", (2, 3)),
    ]
    assert names_and_devices(simulate(gpipe("ab", 2))) == [("a", ("a",)), ("b", ("b",))]
    assert [lane.device_ids for lane in lanes(simulate(gpipe("ab", 2)))] == [(), ()]


def test_chunks_of_a_mesh_share_its_lane(named_graph):
    timeline = simulate(interleaved_1f1b(named_graph("chunks-2x2"), 2))
    assert names_and_devices(timeline) == [("llm.0, llm.2", (0,)), ("llm.1, llm.3", (1,))]


def test_devices_that_act_alike_share_a_lane_where_pieces_run_apart(named_graph):
    timeline = simulate(bubble_fill(named_graph("independent-long"), 3))
    found = dict(names_and_devices(timeline))
    assert [device for devices in found.values() for device in devices] == [0, 1, 2, 3]
    assert found["vision.0, audio, llm.0"] == (0,)
    assert found["vision.0, llm.0"] == (1,)


def test_each_program_is_in_the_lanes_of_its_devices_alone(named_graph):
    timeline = simulate(bubble_fill(named_graph("independent"), 3))
    rows = lanes(timeline)
    for span in timeline.spans:
        assert [row.devices for row in rows if row.shows(span)] == [(device,) for device in span.devices]
