"""Marks by which files are chosen stand in the files of their tests, where they are looked for."""

import pytest

from tests.harness.marks import OF_FEW_FILES
from tests.harness.paths import ROOT


@pytest.mark.parametrize("name", OF_FEW_FILES)
def test_no_test_gets_such_a_mark_from_another_file(name):
    naming = [path for path in (ROOT / "tests").rglob("*.py") if f"mark.{name}" in path.read_text()]
    assert naming
    assert all(path.name.startswith("test_") for path in naming), naming
