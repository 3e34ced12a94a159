"""A format of datasets that is registered in one line is read by the pipeline, the check and the evaluation."""

import csv
import json
from pathlib import Path

import pytest

from hetjax.data import (
    DataConfig,
    Line,
    TrainData,
    check_dataset,
    eval_batches,
)
from hetjax.data.reading import FORMATS, register_format
from hetjax.errors import DataError
from tests.harness.sample_loaders import make_loader


class CsvSource:
    """Questions and answers of a table."""

    def __init__(self, path):
        self.path, self.folder = Path(path), Path(path).parent
        with open(path, newline="") as file:
            self._rows = list(csv.DictReader(file))
        if not self._rows:
            raise DataError(f"dataset '{path}' has no row")

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        row = self._rows[index]
        messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        return Line(text=json.dumps({"messages": messages}).encode(), where=f"{self.path}, row {index + 1}")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(FORMATS, ".csv", None)  # what is registered goes again
    register_format(".csv", CsvSource)


def write(path, rows):
    path.write_text("question,answer\n" + "".join(f"{question},{answer}\n" for question, answer in rows))
    return str(path)


def test_the_pipeline_reads_a_registered_format(tmp_path):
    train = write(tmp_path / "train.csv", [("one?", "first"), ("two?", "second")])
    config = DataConfig(train=train, eval=train, seq_len=48, batch_size=2, shuffle=False, workers=0, epochs=1)
    loader = make_loader(config)
    texts = [loader.tokenizer.decode(row) for row in next(TrainData(loader)).arrays["llm"]["tokens"]]
    assert texts == ["user\none?\nassistant\nfirst\n", "user\ntwo?\nassistant\nsecond\n"]
    assert check_dataset(loader.trained.joined, loader).samples == 2
    assert [answer for each in eval_batches(loader, 2) for (answer,) in each.expected] == ["first", "second"]


def test_errors_name_a_sample_as_its_format_does(tmp_path):
    train = write(tmp_path / "train.csv", [("x" * 50, "long")])
    config = DataConfig(train=train, seq_len=48, batch_size=1, workers=0, epochs=1)
    with pytest.raises(DataError, match=r"train.csv, row 1: the sample takes \d+ tokens"):
        next(TrainData(make_loader(config)))
