import json

from hetjax.tools.demo_data import digits, digits_and_tones


def test_demo_data_counts_the_lines_that_it_wrote(tmp_path):
    numbers = digits(out=str(tmp_path / "digits")).numbers
    lines = {part: (tmp_path / "digits" / f"{part}.jsonl").read_text().splitlines() for part in ("train", "heldout")}
    assert {part: numbers[part] for part in lines} == {part: len(text) for part, text in lines.items()}
    assert json.loads(lines["train"][0])["images"]


def test_the_same_of_digits_and_tones(tmp_path):
    numbers = digits_and_tones(out=str(tmp_path / "both"), samples=20).numbers
    lines = {part: (tmp_path / "both" / f"{part}.jsonl").read_text().splitlines() for part in ("train", "heldout")}
    assert {part: len(text) for part, text in lines.items()} == {"train": 20, "heldout": 891}
    assert {part: numbers[part] for part in lines} == {"train": 20, "heldout": 891}
