"""The page of a run: one file that says what was set, where it ran, and what it found."""

import json
import re

import pytest

from hetjax.cli import train_main
from tests.harness.digits_run import CONFIG, ONE_DEVICE, write_dataset
from tests.harness.paths import ROOT


def table(page, title):
    """The rows of the table behind a heading, as texts of their cells."""
    body = page[page.index(f"<h2>{title}</h2>") :]
    body = body[: body.index("</table>")]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [[cell.strip() for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)] for row in rows]


def test_a_run_ends_with_a_page_of_all_that_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    data = str(write_dataset(tmp_path / "data", samples=16, content="Which <b>?"))
    arguments = [
        *("--config", CONFIG, "--data.train", data, "--data.eval", data, "--run_dir", str(tmp_path / "run")),
        *("--data.batch_size", "8", "--steps", "4", *ONE_DEVICE, "--report", "true", "--name", "a <run>"),
        *("--eval.max_new_tokens", "2", "--model.llm.layers", "1", "--model.vision.layers", "1"),
        *("--best_checkpoint.metric", "eval/loss"),
    ]
    train_main(arguments)
    page = (tmp_path / "run" / "report.html").read_text()
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "a &lt;run&gt;" in page and "4 of 4 steps; best checkpoint: step 4, eval/loss" in page
    assert "Which &lt;b&gt;?" in page, "texts of samples are shown as they are"
    assert f"<td>eval/loss</td><td>{logged[-1]['eval/loss']:.6g}</td>" in page
    assert page.count("data:image/png;base64,") == 4, "curves, placement, two timelines"
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page), "nothing beside the file is needed"
    assert [row[0] for row in table(page, "Placement")] == ["stage", "vision", "llm"]
    _, memory = table(page, "Memory")
    assert memory[:2] == ["0", "vision, llm"] and memory[2].endswith("iB")
    _, measured, simulated, estimated = table(page, "Timeline")
    assert float(measured[1].split()[0]) > 0 and measured[2] == f"{logged[2]['idle/vision']:.1%}"
    seconds = sum(logged[2][f"seconds/{module}"] for module in ("vision", "llm", "boundaries"))
    assert float(simulated[1].split()[0]) == pytest.approx(1000 * seconds, rel=0.05), "one device, one at a time"
    assert estimated[2] == "0.0%"
    assert "learning_rate: 0.002" in page[page.index("<h2>Settings</h2>") :]
