"""Every block of the documents that is marked as runnable runs: ```python runnable and ```sh runnable.

Blocks of one page run in order: Python in one namespace, shell in one folder, where `configs/` and `train.py` are those
of the repository. `hetjax ...` runs in this process, as the command line would, other commands in a shell of their own.
What a line `print(...)  # text` says after the two spaces is what it prints.
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys

import pytest

from hetjax.cli import main
from tests.harness.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|sh) runnable\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUNNABLE = {page.name: BLOCK.findall(page.read_text()) for page in PAGES}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which a reader's commands find what they name."""
    for name in ("configs", "train.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs" / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.mark.timeout(290)
@pytest.mark.parametrize("page", [name for name, blocks in RUNNABLE.items() if blocks])
def test_its_blocks_run_and_print_what_they_say(page, folder, capsys):
    namespace, printed = {"__name__": "__main__"}, []
    for language, block in RUNNABLE[page]:
        if language == "sh":
            for command in commands(block):
                run(command)
            continue
        capsys.readouterr()
        exec(compile(block, page, "exec"), namespace)
        printed = capsys.readouterr().out.splitlines()
        expected = [line.partition("  # ")[2] for line in block.splitlines() if re.match(r"\s*print\(.*\)  # ", line)]
        found = iter(printed)
        assert all(line in found for line in expected), f"{page} prints {printed}, not {expected}"
    if page == "README.md":
        loss, grad_norm = map(float, printed[-1].split())
        assert loss < 3.5, "twenty steps on one batch learn something: a guess costs log(64) = 4.16"
        assert grad_norm > 0


def commands(block: str) -> list[str]:
    """The commands of a block, continued lines joined, comments left out."""
    lines = re.sub(r"\\\n\s*", " ", block).splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def run(command: str) -> None:
    words = shlex.split(command, comments=True)
    if words[0] != "hetjax":
        quick = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=280, env=quick)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return
    with contextlib.suppress(SystemExit) if "--help" in words else contextlib.nullcontext():
        main(words[1:])


def test_blocks_of_python_and_shell_are_marked_one_way_or_the_other():
    """A block that cannot run as it stands, or takes too long, says so: ```python example, ```sh example."""
    for page in PAGES:
        for language, mark in re.findall(r"^```(python|sh)\b *(.*)$", page.read_text(), re.MULTILINE):
            assert mark in ("runnable", "example"), f"{page.name}: a {language} block is marked {mark!r}"
