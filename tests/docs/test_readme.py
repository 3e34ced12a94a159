"""What the README says is so."""

import re

from tests.harness.paths import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language} (?:runnable|example)\n(.*?)```", README, re.DOTALL)


def test_two_commands_do_all_the_set_up():
    train, test = blocks("sh")
    assert train.strip() == "pip install -e '.[demo]' && python train.py --config configs/digits.yaml"
    assert test.strip() == "pip install -e '.[test]' && python -m pytest"
    checks = (ROOT / ".ci" / "run").read_text()
    for part in test.strip().split(" && "):
        assert re.search(rf"^{re.escape(part).replace('install', 'install( -q)?')}$", checks, re.MULTILINE)


def test_every_file_that_the_documents_point_to_is_there():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", re.sub(r"(?ms)^```.*?^```$", "", document.read_text())):
            assert (document.parent / target).exists(), f"{document.name} points to {target}"
