import pytest

from hetjax.meshes import PlacementError, format_devices, parse_devices


@pytest.mark.parametrize(
    ("written", "numbers"),
    [
        ("0-3", (0, 1, 2, 3)),
        ("3", (3,)),
        (" 0 , 2,5-7 ", (0, 2, 5, 6, 7)),
        ("3,2,4,5", (3, 2, 4, 5)),
        ([4, 1], (4, 1)),
        (range(2), (0, 1)),
    ],
)
def test_devices_are_read_in_the_order_written(written, numbers):
    assert parse_devices(written, module="llm") == numbers


def test_all_waits_for_the_number_of_devices():
    assert parse_devices(" all ", module="llm") is None


@pytest.mark.parametrize(
    ("written", "culprit", "fix"),
    [
        ("", "'' is not a number", 'write e.g. "0-3"'),
        ("0-3,", "'' is not a number", 'write e.g. "0-3"'),
        ("a-3", "'a-3' is not a number or a-b", 'write e.g. "0-3", "0,2,5-7" or "all"'),
        ("0-3-5", "'0-3-5' is not a number or a-b", 'write e.g. "0-3"'),
        ("5-2", "runs backwards in '5-2'", "write 2-5"),
        ("0-3,2", "lists device 2 twice", "each device once"),
        ([1, 1], "lists device 1 twice", "each device once"),
        ([-1, 0], "has a negative number", "devices count from 0"),
        ([], "names no device", 'write e.g. "0-3" or "all"'),
        (3.5, "devices=3.5 is no list of device numbers", "write e.g. [0, 1, 2, 3]"),
        ([0.5], "devices=[0.5] is no list of device numbers", "write e.g. [0, 1, 2, 3]"),
    ],
)
def test_a_wrong_range_is_refused_with_module_values_and_fix(written, culprit, fix):
    with pytest.raises(PlacementError) as caught:
        parse_devices(written, module="llm")
    message = str(caught.value)
    assert message.startswith("module 'llm': ")
    assert f"devices={written!r}" in message
    assert culprit in message
    assert fix in message


@pytest.mark.parametrize("text", ["0-3", "0", "0,2,5-7", "3,2,4-5", "7,0-1"])
def test_formatted_devices_read_back_as_written(text):
    assert format_devices(parse_devices(text, module="llm")) == text


def test_many_thousand_devices_are_checked_at_once():
    """Counting each number over the whole list would take minutes."""
    assert len(parse_devices("0-99999", module="llm")) == 100_000
