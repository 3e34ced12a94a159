"""docs/architecture.md is a map of what is there."""

import ast
import re

from tests.harness.paths import ROOT
from tests.harness.sources import MODULES, tree_of

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_package_is_on_the_map():
    packages = [path.parent.relative_to(ROOT).as_posix() for path in MODULES.values() if path.name == "__init__.py"]
    lacking = [package for package in packages if f"`{package}/`" not in PAGE]
    assert not lacking, f"write what is in {lacking}"


def test_every_path_on_the_page_exists():
    for path in re.findall(r"`((?:hetjax|models|meshes|tests|docs|configs)/[\w/.]*)`", PAGE):
        assert (ROOT / path).exists(), path


def private_names() -> set[str]:
    """Modules of others that are imported though their name says that they are private."""
    found = set()
    for path in [*MODULES.values(), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(tree_of(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            found |= {
                name for name in names if any(part.startswith("_") and part != "__future__" for part in name.split("."))
            }
    return found


def test_every_private_name_in_use_is_listed():
    listed = PAGE[PAGE.index("## Private API") :]
    assert private_names(), "the search finds what is known to be in use"
    for name in private_names():
        assert f"`{name}" in listed, f"say on the page why {name} is used"
