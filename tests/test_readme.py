"""What the README says is so."""

import re
import subprocess
import sys

import pytest

from tests.harness.compile_quickly import environment
from tests.harness.paths import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.timeout(300)
def test_the_example_runs_as_it_stands():
    (example,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=ROOT,
        env=environment(quick=True),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    loss, grad_norm = map(float, done.stdout.split())
    assert loss < 3.5, "twenty steps on one batch learn something: a guess costs log(64) = 4.16"
    assert grad_norm > 0


def test_two_commands_do_all_the_set_up():
    train, test = blocks("sh")
    assert train.strip() == "pip install -e '.[demo]' && python train.py --config configs/digits.yaml"
    assert test.strip() == "pip install -e '.[test]' && python -m pytest"
    checks = (ROOT / ".ci" / "run").read_text()
    for part in test.strip().split(" && "):
        assert re.search(rf"^{re.escape(part).replace('install', 'install( -q)?')}$", checks, re.MULTILINE)


def test_every_file_that_the_documents_point_to_is_there():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} points to {target}"
