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


def test_each_cell_tells_its_place_in_the_mesh(tmp_path, monkeypatch):
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
    assert [text for text in shown if text.startswith("llm")] == ["llm.0", "llm.1", "llm.2", "llm.3"]
    assert share(tmp_path / "placement.png", BLUE).mean() > 0.05
    assert not share(tmp_path / "placement.png", ORANGE).any()


def test_text_that_could_not_be_read_is_left_out(tmp_path, monkeypatch):
    placement = Placement({"llm": Layout(data=128)}).resolve(128)
    assert not [text for text in texts(monkeypatch, placement, tmp_path / "p.svg") if text.startswith("data ")][1:]


def test_several_chunks_of_a_mesh_are_named_in_its_row(tmp_path, monkeypatch):
    placement = Placement({"llm": Layout(stage=2, tensor=2, chunks=2)}).resolve(4)
    found = texts(monkeypatch, placement, tmp_path / "placement.png")
    assert {"llm.0, llm.2", "llm.1, llm.3"} <= set(found)
