"""The page of hetjax data inspect: samples with pictures, figures of batches, and what is skipped and why."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from hetjax.cli import main
from hetjax.data import write_shapes
from hetjax.data.chat import RowUse
from hetjax.data.modalities import Placeholder
from hetjax.meshes import Layout
from hetjax.tools.data.batch_statistics import batch_statistics
from hetjax.tools.data.media_pictures import pictures_of
from hetjax.tools.data.report_page import reasons_of
from tests.harness.paths import ROOT


def test_the_page_shows_samples_figures_and_reasons(tmp_path, capsys):
    write_shapes(tmp_path / "shapes", samples=40)
    train = tmp_path / "shapes/train.jsonl"
    lines = train.read_text().splitlines()
    bad = [json.dumps({"messages": [{"role": "user", "content": str(i)}], "images": [f"{i}.png"]}) for i in range(3)]
    train.write_text("\n".join([*lines, *bad, ""]))
    config = ("--config", str(ROOT / "configs/omni_tiny.yaml"), "--data.train", str(train), "--data.batch_size", "4")
    main(["data", "inspect", *config, "--out", str(tmp_path / "page.html"), "--samples", "12"])
    assert f"wrote {tmp_path / 'page.html'}" in capsys.readouterr().out.replace("\n", "")
    page = (tmp_path / "page.html").read_text()
    assert "37 of 37 samples" in page and re.search(r"3 of them \(8\.11 %\) are skipped", page)
    assert re.search(r"no assistant message.*?</td>\s*<td>3</td>", page, re.DOTALL)
    assert "<mark>" in page and "&lt;|im_end|&gt;" in page
    assert re.search(r"<figcaption>\d\.\d\d s</figcaption>", page)  # of a frame
    assert "16 kHz" in page and page.count("data:image/png") > 5
    assert "packing efficiency" in page and "fullest shard of vision against the mean" in page
    assert "histograms of what samples take" in page


def test_equal_reasons_are_one():
    found = reasons_of(
        ["a.jsonl:1: image 'a.png' has 10 bytes", "b c.tar:20 (0001): image 'b' has 1,200 bytes", "a.jsonl:3: no"]
    )
    assert [(reason.words, reason.count) for reason in found] == [("image '…' has N bytes", 2), ("no", 1)]
    assert found[0].first == "a.jsonl:1: image 'a.png' has 10 bytes"


def test_pictures_are_what_encoders_get():
    image = np.zeros((4, 8, 3), np.float32)
    assert [each.words for each in pictures_of([image], None, (0, 0, 0), (1, 1, 1))] == ["8 x 4"]
    film = np.zeros((4, 4, 4, 3), np.float32)
    words = [each.words for each in pictures_of([film], [0.0, 0.5, 1.25], (0, 0, 0), (1, 1, 1))]
    assert words == ["0.00 s", "0.50 s", "1.25 s", "fills the last tubelet"]
    sounds = [np.sin(np.arange(8000, dtype=np.float32)), np.zeros(800, np.float32)]
    assert [each.words for each in pictures_of(sounds, None, (), ())] == ["0.55 s at 16 kHz"]
    assert [each.words for each in pictures_of([np.zeros(100, np.float32)], None, (), ())] == ["0.01 s at 16 kHz"]
    assert pictures_of([np.zeros((2, 2), np.float32)], None, (), ()) == []


def test_padding_and_imbalance_of_batches():
    modality = SimpleNamespace(resources=[SimpleNamespace(name="image_rows", words="rows of images")])
    capacity = SimpleNamespace(
        most=RowUse(tokens=10, before_pruning=10, media={"image_rows": 8}),
        modalities={"image": modality},
        encoders={Placeholder(name="image", module="vision", token="", start="", end=""): [modality]},
    )
    loader = SimpleNamespace(
        config=SimpleNamespace(batch_size=4),
        processor=SimpleNamespace(config=SimpleNamespace(packed=1), capacity=capacity),
    )
    uses = [RowUse(tokens=t, before_pruning=t, media={"image_rows": r}) for t, r in [(5, 8), (5, 4), (10, 0), (0, 0)]]
    found = batch_statistics(loader, [*uses, uses[0]], {"vision": Layout(devices="0-1", data=2)})
    assert found.batches == 1 and found.samples_per_row == 1
    assert found.padding == {"tokens": pytest.approx(0.5), "rows of images": pytest.approx(1 - 12 / 32)}
    assert found.imbalance == {"vision": pytest.approx(2.0)}  # one shard has all 12 rows
    assert batch_statistics(loader, uses[:3], {}) is None
