import json

from hetjax.tools.demo_data import digits


def test_demo_data_counts_the_lines_that_it_wrote(tmp_path):
    numbers = digits(out=str(tmp_path / "digits")).numbers
    lines = {part: (tmp_path / "digits" / f"{part}.jsonl").read_text().splitlines() for part in ("train", "heldout")}
    assert {part: numbers[part] for part in lines} == {part: len(text) for part, text in lines.items()}
    assert json.loads(lines["train"][0])["images"]
