"""The table of several runs, from reports that are made up."""

import dataclasses

import pytest

from hetjax.cli import main
from hetjax.compilation.targets import parse_target
from hetjax.tools.target.fit import markdown
from tests.harness.fit_reports import FACTS, need, report

FORWARD = dataclasses.replace(FACTS, name="llm forward", flops_done=11, flops_needed=10)
H100S = parse_target("h100x8")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(**reports) -> dict[str, list[str]]:
    lines = list(markdown(H100S, {name: (found, 12.4) for name, found in reports.items()}))
    assert all(line.count("|") == lines[0].count("|") for line in lines if line.startswith("|"))
    assert "74.5 GiB" in lines[0]
    return {cells(line)[0]: cells(line)[1:] for line in lines[2:] if line.startswith("|")}


def test_a_row_holds_the_parts_of_the_peak_and_the_ratios_of_each_module():
    row = rows(a=report(need("residuals", 20), programs=[FORWARD, FACTS]))["`a`"]
    # 10 GiB of weights, 20 of residuals, 2 GiB and 2 % of 80 GB in reserve.
    assert row == ["10.0", "20.0", "0.0", "3.5", "33.5", "55%", "llm 1.10, 2.00", "12"]


def test_stages_of_a_module_and_parts_of_a_backward_are_added_up():
    programs = [
        dataclasses.replace(FACTS, name=name, flops_done=done, flops_needed=10)
        for name, done in (("llm.0 backward_input", 10), ("llm.0 backward_weight.1", 20), ("llm.1 backward", 30))
    ]
    found = report(need("residuals", 5, name="llm.0"), programs=programs, stages=("llm.0", "llm.1"))
    assert rows(a=found)["`a`"][-2] == "llm 2.00"


def test_a_run_that_does_not_fit_or_compile_says_so():
    found = rows(large=report(need("residuals", 80)), failed=report(need("residuals", 5), failed={"llm update": "no"}))
    assert found["`large`"][5] == "-25%" and found["`failed`"][5] == "does not compile"
    lines = list(markdown(H100S, {"a": (report(need("residuals", 5), failed={"llm update": "no"}), 1.0)}))
    assert lines[-1] == "`a`: llm update does not compile: no"


@pytest.mark.parametrize(("arguments", "words"), [(["h100x8"], "--configs"), (["h9"], "h200")])
def test_bad_input_ends_with_one_message(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["fit", *arguments, *(["--configs", "configs/digits.yaml"] if words != "--configs" else [])])
    printed = capsys.readouterr()
    assert exit.value.code == 2 and printed.out == "" and words in printed.err
