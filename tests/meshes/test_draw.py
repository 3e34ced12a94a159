import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hetjax.meshes import Layout, Placement
from hetjax.meshes.draw import draw_placement

BLUE, ORANGE = "2f6db3", "cf7412"


def share(path, colour):
    """How much of a picture has a colour, row by row of pixels: [height, width] of booleans."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return (pixels == np.frombuffer(bytes.fromhex(colour), np.uint8)).all(-1)


def texts(monkeypatch, placement, path, **options):
    """Every text of the picture."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args: (figures.append(self), save(self, *args)))
    draw_placement(placement, path, **options)
    return [text.get_text() for text in figures[0].axes[0].texts]


def test_disjoint_modules_fill_cells_of_their_own_colours_in_proportion_to_their_devices(tmp_path):
    layouts = {"vision": Layout(devices="0-1", data=2), "llm": Layout(devices="2-7", data=6)}
    draw_placement(Placement(layouts).resolve(8), tmp_path / "placement.png")
    blue, orange = share(tmp_path / "placement.png", BLUE), share(tmp_path / "placement.png", ORANGE)
    assert orange.sum() / blue.sum() == pytest.approx(3, rel=0.05)
    # The encoder's row lies above, and its columns left of the language model's.
    assert np.argwhere(blue).max(axis=0)[0] < np.argwhere(orange).min(axis=0)[0]
    assert np.argwhere(blue).max(axis=0)[1] < np.argwhere(orange).min(axis=0)[1]


def test_each_cell_shows_its_place_in_the_mesh(tmp_path, monkeypatch):
    layout = Layout(devices="2-5", data=2, tensor=2)
    shown = texts(monkeypatch, Placement({"llm": layout}).resolve(8), tmp_path / "placement.png", title="digits")
    cells = ["data 0\ntensor 0", "data 0\ntensor 1", "data 1\ntensor 0", "data 1\ntensor 1"]
    assert [text for text in shown if "\n" in text] == cells
    assert {"llm", "data 2 · tensor 2", "on 2-5", "digits"} <= set(shown)


def test_columns_reach_to_the_last_device_used_or_as_many_as_there_are(tmp_path, monkeypatch):
    placement = Placement({"llm": Layout(devices="0-2", data=3)}).resolve(8)
    with monkeypatch.context() as patch:
        assert [text for text in texts(patch, placement, tmp_path / "a.png") if text.isdigit()] == ["0", "1", "2"]
    with monkeypatch.context() as patch:
        shown = texts(patch, placement, tmp_path / "b.png", devices=8)
    assert [text for text in shown if text.isdigit()] == [str(number) for number in range(8)]


def test_every_stage_of_a_module_has_a_row_and_the_module_one_colour(tmp_path, monkeypatch):
    placement = Placement({"llm": Layout(devices="0-31", stage=4, data=2, tensor=4)}).resolve(32)
    shown = texts(monkeypatch, placement, tmp_path / "placement.png")
    assert [text for text in shown if re.fullmatch(r"llm[.\d]*", text)] == ["llm.0", "llm.1", "llm.2", "llm.3"]
    assert share(tmp_path / "placement.png", BLUE).mean() > 0.05
    assert not share(tmp_path / "placement.png", ORANGE).any()


def test_text_that_could_not_be_read_is_left_out(tmp_path, monkeypatch):
    """One device of a host is too narrow a place, which then has no text; the list of meshes names it."""
    layouts = {"vision": Layout(devices="0", data=1), "llm": Layout(devices="1-127", data=127)}
    shown = texts(monkeypatch, Placement(layouts).resolve(128), tmp_path / "p.svg")
    assert not [text for text in shown if text.startswith("vision\n")]
    assert "vision" in shown and "llm\ndata 0-6" in shown


LARGE = {
    "colocated": lambda count: {
        "vision": Layout(data=count // 16, fsdp=8, tensor=2),
        "audio": Layout(data=count // 16, fsdp=8, tensor=2),
        "llm": Layout(fsdp=4, expert=count // 8, tensor=2),
    },
    "stages of two chunks": lambda count: {
        "vision": Layout(data=count),
        "llm": Layout(stage=8, chunks=2, fsdp=2, expert=2, context=count // 64, tensor=2),
    },
    "disjoint, in halves of hosts": lambda count: {
        "vision": Layout(devices="0-3", data=4),
        "llm": Layout(devices=f"4-{count - 1}", data=(count - 4) // 2, tensor=2),
    },
    "every third device": lambda count: {
        "vision": Layout(devices=list(range(0, count, 3)), data=len(range(0, count, 3))),
        "llm": Layout(data=count),
    },
}


@pytest.mark.parametrize("count", [64, 256, 1024])
@pytest.mark.parametrize("name", LARGE)
def test_a_picture_of_many_devices_keeps_its_size_and_no_two_texts_overlap(name, count, tmp_path, monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args: (figures.append(self), save(self, *args)))
    title = "a run with a name that no line of a picture can hold, " * 6
    draw_placement(Placement(LARGE[name](count)).resolve(count), tmp_path / "p.png", title=title, devices=count)
    width, height = Image.open(tmp_path / "p.png").size
    assert 600 < width < 2200
    assert 0.4 < width / height < 4
    renderer = figures[0].canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figures[0].axes[0].texts]
    corners = np.array([(box.x0, box.y0, box.x1, box.y1) for box in boxes])
    assert corners[:, :2].min() >= 0 and (corners[:, 2:] <= [width, height]).all()
    across = np.minimum(corners[:, None, 2:], corners[:, 2:]) - np.maximum(corners[:, None, :2], corners[:, :2])
    overlapping = np.argwhere((across > 1).all(-1) & ~np.eye(len(boxes), dtype=bool))
    assert not len(overlapping), [figures[0].axes[0].texts[i].get_text() for i in overlapping[0]]


def test_a_host_has_a_tile_that_says_what_its_devices_hold(tmp_path, monkeypatch):
    placement = Placement({"vision": Layout(data=64), "llm": Layout(stage=2, fsdp=8, tensor=4)}).resolve(64)
    with monkeypatch.context() as patch:
        shown = texts(patch, placement, tmp_path / "p.png")
    assert [text for text in shown if text.startswith("devices ")] == [f"devices {8 * i}-{8 * i + 7}" for i in range(8)]
    assert {"vision\ndata 8-15", "llm.0\nfsdp 2-3\ntensor 0-3", "llm.1\nfsdp 6-7\ntensor 0-3"} <= set(shown)
    with monkeypatch.context() as patch:
        shown = texts(patch, placement, tmp_path / "p.png", devices_per_host=4)
    assert {"devices 4-7", "vision\ndata 4-7", "llm.0\nfsdp 1\ntensor 0-3"} <= set(shown)


def test_a_title_that_one_line_cannot_hold_is_not_cut(tmp_path, monkeypatch):
    placement = Placement({"llm": Layout(devices="0-1", data=2)}).resolve(2)
    title = "a run with a long name on two devices"
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args: (figures.append(self), save(self, *args)))
    draw_placement(placement, tmp_path / "p.png", title=title)
    (drawn,) = [text for text in figures[0].axes[0].texts if text.get_text().replace("\n", " ") == title]
    box = drawn.get_window_extent(figures[0].canvas.get_renderer())
    width, height = Image.open(tmp_path / "p.png").size
    assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height


def test_several_chunks_of_a_mesh_are_named_in_its_row(tmp_path, monkeypatch):
    placement = Placement({"llm": Layout(stage=2, tensor=2, chunks=2)}).resolve(4)
    found = texts(monkeypatch, placement, tmp_path / "placement.png")
    assert {"llm.0, llm.2", "llm.1, llm.3"} <= set(found)
