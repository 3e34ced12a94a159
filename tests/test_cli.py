import json
import os
import subprocess
import sys

import pytest

from hetjax.cli import main
from tests.harness.paths import ROOT

DIGITS = str(ROOT / "configs" / "digits.yaml")


def refused(capsys, *arguments):
    """What a command line that must fail says on stderr."""
    with pytest.raises(SystemExit) as exit:
        main(list(arguments))
    printed = capsys.readouterr()
    assert exit.value.code == 2
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return printed.err


def test_an_unknown_tool_is_refused_with_the_one_that_was_meant(capsys):
    printed = refused(capsys, "tiemline")
    assert "did you mean 'timeline'?" in printed
    assert "'demo-data'" in printed


def test_a_group_without_a_tool_lists_its_tools(capsys):
    assert "{overhead,step,overlap,boundary,layouts, ...}" in refused(capsys, "bench")


def test_an_unknown_option_or_setting_is_refused_with_the_one_that_was_meant(capsys):
    assert "did you mean 'width'? `hetjax placement --help`" in refused(
        capsys, "placement", "--config", DIGITS, "--model.llm.widht", "3"
    )
    assert "did you mean 'timed_steps'? `hetjax bench step --help`" in refused(
        capsys, "bench", "step", "--config", DIGITS, "--timed_stesp", "3"
    )
    assert "did you mean 'tensor'?" in refused(
        capsys, "placement", "--config", DIGITS, "--placement.llm.tensr", "3"
    )  # fmt: skip


def test_a_value_of_the_wrong_type_is_refused(capsys):
    assert "steps" in refused(capsys, "bench", "overhead", "--steps", "many")


def test_a_layout_that_does_not_fit_is_refused(capsys):
    printed = refused(capsys, "placement", "--config", DIGITS, "--placement.llm.tensor", "3")
    assert "module 'llm': layout covers data*tensor = 2*3 = 6 devices, but devices='4-7' are 4" in printed


@pytest.mark.parametrize(
    ("microbatches", "said"),
    [
        ("{llm: 2, vision: 4}", "module 'vision' has 4 and feeds 'llm', which has 2"),
        ("{vision: 1}", "has no number for module 'llm', which holds the loss; add one"),
        ("{llm: 0}", "microbatches of module 'llm'=0; give a whole number, 1 or more"),
        ("{llm: 2, eye: 1}", "microbatches names module 'eye', which the graph lacks"),
    ],
)
def test_microbatches_that_do_not_fit_are_refused(capsys, microbatches, said):
    assert said in refused(capsys, "placement", "--config", DIGITS, "--microbatches", microbatches)


def test_a_missing_config_is_refused(capsys):
    assert "nowhere.yaml" in refused(capsys, "timeline", "--config", "nowhere.yaml")


def test_a_picture_that_cannot_be_written_is_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    printed = refused(capsys, "placement", "--config", DIGITS, "--out", str(tmp_path / "file" / "placement.png"))
    assert str(tmp_path / "file") in printed


def test_json_is_the_last_line_and_the_placement_is_in_it(capsys):
    main(["placement", "--config", DIGITS, "--json"])
    numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["devices"] for row in numbers["stages"]] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_without_json_a_table_is_printed(capsys, tmp_path):
    main(["placement", "--config", DIGITS, "--out", str(tmp_path / "placement.png")])
    printed = capsys.readouterr().out
    assert "data=2 tensor=2" in printed
    assert f"wrote {tmp_path / 'placement.png'}" in printed.replace("\n", "")


def test_help_of_every_tool_lists_its_options(capsys):
    for tool, option in (
        (["timeline"], "--measured"),
        (["placement"], "--out"),
        (["demo-data", "digits"], "--out"),
        (["bench", "overhead"], "--microbatches"),
        (["bench", "step"], "--timed_steps"),
    ):
        with pytest.raises(SystemExit) as exit:
            main([*tool, "--help"])
        assert exit.value.code == 0
        printed = capsys.readouterr().out
        assert option in printed
        assert "--json" in printed
        assert ("--config" in printed) == (tool[0] in ("timeline", "placement") or tool[-1] == "step")


def test_the_module_runs_as_a_command_on_devices_of_its_own(tmp_path):
    """In a fresh process, where nothing has settled the devices yet."""
    command = [sys.executable, "-m", "hetjax", "timeline", "--config", DIGITS, "--out", str(tmp_path / "t.json")]
    done = subprocess.run(
        [*command, "--json"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["stages"]["llm"]["devices"] == [4, 5, 6, 7]
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
