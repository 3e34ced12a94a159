import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from hetjax.schedule import (
    SCHEDULES,
    Costs,
    StageGraph,
    bubble_fill,
    build_schedule,
    gpipe,
    one_f_one_b,
    simulate,
    zero_bubble,
)
from hetjax.schedule.draw import device_ranges, draw
from hetjax.schedule.host_memory.offload import offload_modules


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_picture_has_the_colours_of_both_modules_and_kinds(tmp_path, schedule):
    draw(simulate(build_schedule(schedule, StageGraph.chain(("vision", "llm")), 4)), tmp_path / "picture.png")
    pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 1500
    # Of a backward in two parts, the shades of both.
    llm = ("874b0c", "e4a257") if schedule == "zero_bubble" else ("cf7412",)
    for colour in ("a9cbee", "2f6db3", "f9cf9c", *llm):
        area = (pixels == np.frombuffer(bytes.fromhex(colour), np.uint8)).all(-1).mean()
        assert area > 0.005, f"#{colour} covers {area:.2%} of the picture"


def test_a_picture_shows_stages_devices_idle_share_and_unit(tmp_path, named_graph):
    timeline = simulate(one_f_one_b(named_graph("shared-devices"), 2), Costs(forward=0.001, backward=0.002, update=0))
    draw(timeline, tmp_path / "picture.svg", title="My pipeline", unit="ms")
    comments = re.findall(r"<!-- (.*?) -->", (tmp_path / "picture.svg").read_text())
    idle = f"{timeline.idle_share('llm.0'):.0%}"
    for text in ("My pipeline", "vision", "llm.1", f"devices 0-1 · idle {idle}", "time (ms)", "gradient crosses"):
        assert text in comments
    assert f"makespan {timeline.makespan * 1e3:.4g} ms · idle {timeline.idle_share():.1%}" in comments


def test_every_program_has_a_box_with_its_microbatch(tmp_path):
    draw(simulate(gpipe("abcd", 8)), tmp_path / "picture.svg")
    comments = re.findall(r"<!-- (.*?) -->", (tmp_path / "picture.svg").read_text())
    for microbatch in range(8):
        ticks = {"0", "5"}  # these numbers also stand on the time axis
        assert comments.count(str(microbatch)) == 2 * 4 + (str(microbatch) in ticks)


def test_a_split_backward_has_two_entries_in_the_legend(tmp_path):
    draw(simulate(zero_bubble("ab", 2)), tmp_path / "picture.svg")
    comments = re.findall(r"<!-- (.*?) -->", (tmp_path / "picture.svg").read_text())
    labels = ["a forward", "a backward", "b forward", "b backward, inputs", "b backward, weights", "update"]
    assert [text for text in comments if text in labels] == labels


def test_pieces_that_run_apart_are_drawn_on_their_devices(tmp_path, named_graph):
    schedule = bubble_fill(named_graph("independent"), 2)
    draw(simulate(schedule), tmp_path / "picture.svg")
    comments = re.findall(r"<!-- (.*?) -->", (tmp_path / "picture.svg").read_text())
    assert "vision, llm.0" in comments
    assert "vision, llm.1" in comments
    # Per microbatch, on each of two lanes: a forward and a backward of the encoder and of one stage.
    assert sum(text == "1" for text in comments) == 2 * 4


def test_device_ids_are_shortened_to_ranges():
    assert device_ranges((0, 1, 2, 3, 6, 9, 8)) == "0-3,6,8-9"
    assert device_ranges((4,)) == "4"
    assert device_ranges(()) == ""


def test_a_long_title_takes_several_lines_beside_the_makespan(tmp_path, monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args: (figures.append(self), save(self, *args)))
    title = "a run with a long name that says all about its modules: zero_bubble, 16 microbatches " * 3
    draw(simulate(gpipe("ab", 4)), tmp_path / "picture.png", title=title)
    (axes,) = figures[0].axes
    width, height = Image.open(tmp_path / "picture.png").size
    texts = [text for text in axes.findobj(Text) if text.get_text().startswith(("a run", "makespan"))]
    left, right = sorted(texts, key=lambda text: text.get_window_extent().x0)
    boxes = [text.get_window_extent() for text in (left, right)]
    assert left.get_text().replace("\n", " ") == title.strip()
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    assert not boxes[0].overlaps(boxes[1])


def test_host_copies_are_strips_below_the_lanes_of_their_stages(tmp_path, named_graph):
    plain = build_schedule("colocated", named_graph("shared-devices"), 2)
    costs = Costs(offload=0.5, reload=0.5)
    for schedule, least in ((plain, 0), (offload_modules(plain, ["vision"]), 50)):
        draw(simulate(schedule, costs), tmp_path / "picture.png")
        pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))
        for colour in ("7a8087", "1f8580"):
            count = (pixels == np.frombuffer(bytes.fromhex(colour), np.uint8)).all(-1).sum()
            assert count > least if least else count == 0
        draw(simulate(schedule, costs), tmp_path / "picture.svg")
        comments = re.findall(r"<!-- (.*?) -->", (tmp_path / "picture.svg").read_text())
        assert ("to host memory" in comments, "from host memory" in comments) == (least > 0,) * 2
