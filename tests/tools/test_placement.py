from hetjax.tools.placement import placement


def test_placement_lists_devices_and_parameters_of_each_stage(make_config, tmp_path):
    config = make_config("--placement.llm", "{devices: 2-7, stage: 3, tensor: 2}")
    numbers = placement(config=config, out=str(tmp_path / "placement.png")).numbers
    assert [(row["stage"], row["devices"]) for row in numbers["stages"]] == [
        ("vision", [0, 1]),
        ("llm.0", [2, 3]),
        ("llm.1", [4, 5]),
        ("llm.2", [6, 7]),
    ]
    # One layer each, and embedding, final norm and head at the ends.
    layer = 2 * 24 + 2 * 24 * 24 + 2 * 24 * 12 + 3 * 24 * 48
    ends = [24 * 40, 0, 24 * 40 + 24]
    assert [row["parameters"] for row in numbers["stages"]][1:] == [layer + end for end in ends]
    assert (tmp_path / "placement.png").read_bytes().startswith(b"\x89PNG")


def test_every_chunk_has_its_row(make_config):
    changes = ("--placement.llm", "{devices: 2-3, stage: 1, tensor: 2, chunks: 3}")
    rows = placement(config=make_config(*changes)).numbers["stages"]
    assert [(row["stage"], row["devices"]) for row in rows[1:]] == [(f"llm.{i}", [2, 3]) for i in range(3)]
