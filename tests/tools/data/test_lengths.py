"""hetjax data lengths: what samples take, and what each choice of a row would leave empty."""

import json

import numpy as np
import pytest

from hetjax.cli import main
from hetjax.data import write_digits, write_shapes
from hetjax.tools.data.measured import Amount
from hetjax.tools.data.row_choices import row_choices, suggested
from tests.harness.paths import ROOT


def amount(taken, *, has, step=8, words="tokens", setting="seq_len"):
    return Amount(words=words, setting=setting, has=has, step=step, taken=np.asarray(taken))


def lengths(capsys, config, train, *arguments):
    capsys.readouterr()
    main(["data", "lengths", "--config", str(ROOT / "configs" / config), "--data.train", str(train), *arguments])
    return capsys.readouterr().out


def test_choices_say_how_much_is_padding():
    tokens = amount([10, 20, 30, 40] * 25, has=100)
    rows = amount([4, 0, 0, 8] * 25, has=6, step=4, words="rows of images", setting="processor.image_rows")
    own, *others = row_choices({"tokens": tokens, "image_rows": rows}, packed=1)
    assert own.is_run and own.sizes == {"tokens": 100, "image_rows": 6}
    assert own.left_out == pytest.approx(0.25)  # those with 8 rows of images
    assert own.padding["tokens"] == pytest.approx(1 - 20 / 100)
    assert own.padding["image_rows"] == pytest.approx(1 - 4 / 3 / 6)
    (whole,) = [choice for choice in others if choice.packed == 1]  # the same for 90, 99 and 100 % of the samples
    assert whole.sizes == {"tokens": 40, "image_rows": 8} and whole.left_out == 0
    assert whole.padding["tokens"] == pytest.approx(1 - 25 / 40)
    shared = [choice for choice in others if choice.packed > 1]
    assert all(choice.left_out == 0 and choice.padding["tokens"] < whole.padding["tokens"] for choice in shared)
    best = suggested([own, *others])
    assert best.packed > 1 and best.left_out == 0


def test_packed_is_the_most_samples_of_a_row():
    tokens = amount([10] * 9 + [40], has=40)
    own, *others = row_choices({"tokens": tokens}, packed=2)
    assert own.packed == 2 and own.padding["tokens"] == pytest.approx(1 - 130 / (6 * 40))
    assert max(choice.packed for choice in others if choice.sizes["tokens"] == 40) == 4


def test_equal_samples_need_no_packing():
    own, *others = row_choices({"tokens": amount([64] * 50, has=100)}, packed=1)
    best = suggested([own, *others])
    assert best.sizes == {"tokens": 64} and best.packed == 1 and best.padding["tokens"] == 0


def test_samples_are_measured_beyond_what_rows_have_room_for(tmp_path, capsys):
    write_shapes(tmp_path / "shapes", samples=40)
    short = ("--data.seq_len", "64", "--data.processor.image_rows", "4")
    found = json.loads(lengths(capsys, "omni_tiny.yaml", tmp_path / "shapes/train.jsonl", *short, "--json"))
    assert found["samples"] == found["of"] == 34 and found["bad"] == 0
    amounts = found["amounts"]
    assert set(amounts) == {"tokens", "image_rows", "video_rows", "clips"}
    assert amounts["tokens"]["max"] > 64 == amounts["tokens"]["has"] and amounts["image_rows"]["max"] > 4
    assert found["choices"][0]["is_run"] and found["choices"][0]["left_out"] > 0.3
    assert found["suggested"]["seq_len"] >= amounts["tokens"]["max"]
    assert found["suggested"]["processor"]["image_rows"] >= amounts["image_rows"]["max"]
    shown = lengths(
        capsys, "omni_tiny.yaml", tmp_path / "shapes/train.jsonl", "--samples", "10", "--out", str(tmp_path / "l.png")
    )
    assert "10 of 34 samples" in shown and "suggested:" in shown and (tmp_path / "l.png").stat().st_size > 5000


def test_images_of_one_size(tmp_path, capsys):
    write_digits(tmp_path / "digits")
    found = json.loads(lengths(capsys, "digits.yaml", tmp_path / "digits/train.jsonl", "--samples", "20", "--json"))
    assert found["amounts"]["images"]["max"] == 1 and found["suggested"]["processor"]["images"] >= 1
