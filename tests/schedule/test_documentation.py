"""docs/schedules.md shows what the schedules make."""

import itertools
import re

import pytest

from hetjax.schedule import SCHEDULES, Costs, Kind, StageGraph, build_schedule
from hetjax.schedule.host_memory.offload import offload_modules
from tests.harness.paths import ROOT

PAGE = (ROOT / "docs" / "schedules.md").read_text()
EQUAL = Costs(backward=1, update=0)


@pytest.fixture
def drawn(named_graph, make_pipeline, make_shared, picture, device_picture):
    """The rows of each example."""
    chain = StageGraph.chain("abc")
    return {
        "gpipe": picture(build_schedule("gpipe", chain, 4)),
        "1f1b": picture(build_schedule("1f1b", chain, 4)),
        "interleaved_1f1b": picture(build_schedule("interleaved_1f1b", make_pipeline(2, 2), 4)),
        "zero_bubble": device_picture(build_schedule("zero_bubble", chain, 4), Costs(update=0)),
        "colocated": picture(build_schedule("colocated", named_graph("shared-devices"), 3)),
        "bubble_fill": device_picture(build_schedule("bubble_fill", make_shared(2), 3, EQUAL), EQUAL),
    }


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_page_draws_what_each_schedule_makes(name, drawn):
    example = re.search(rf"^`{name}`.*?^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1]
    cells = [re.findall(r"(?:[FBIWfb]\d|\.\.)", line) for line in example.splitlines()]
    assert [row.split() for row in _with_letters(name, drawn[name])] == cells


def _with_letters(name: str, rows: list[str]) -> list[str]:
    """A chain of modules has encoders, too; the page writes them in capitals there."""
    return [row.upper() for row in rows] if name == "zero_bubble" else rows


def test_the_page_has_a_line_in_its_table_for_each_schedule():
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == [
        *("gpipe", "1f1b", "interleaved_1f1b", "zero_bubble", "colocated", "bubble_fill")
    ]


def test_the_page_draws_the_copies_of_an_offloaded_encoder(named_graph):
    schedule = offload_modules(build_schedule("colocated", named_graph("shared-devices"), 2), ["vision"])
    shown = [action for action in schedule.actions if action.kind not in (Kind.TRANSFER, Kind.UPDATE)]
    runs = itertools.groupby(shown, key=lambda action: action.stage.partition(".")[0])
    rows = [f"{module:6}  {' '.join(map(str, actions))}" for module, actions in runs]
    assert "\n".join(rows) in PAGE
