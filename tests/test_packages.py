"""How the packages stand to each other, drawn from the source: their imports, their sizes, and what is installed."""

import ast
import graphlib
import tomllib
from collections.abc import Iterator

import pytest

from tests.harness.paths import ROOT
from tests.harness.sources import MODULES, tree_of

# Folders whose own files are parts of no one package: each file stands for itself.
ROOTS = {"hetjax", "hetjax.models"}


def imports_of(name: str) -> Iterator[str]:
    """The modules of ours that a module imports, wherever in it."""
    for node in ast.walk(tree_of(MODULES[name])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ([each if each in MODULES else node.module for each in submodules])


def package_of(name: str) -> str:
    """The folder that a module is in; a file in a root stands for itself."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    return name if package in ROOTS else package


def package_imports() -> dict[str, set[str]]:
    """What each package imports of the others."""
    graph: dict[str, set[str]] = {}
    for name in MODULES:
        # The roots' own __init__ hands names of everything on, and nothing below may need it for more than its name.
        if name not in ROOTS:
            graph.setdefault(package_of(name), set()).update(package_of(each) for each in imports_of(name))
    return {package: others - {package} for package, others in graph.items()}


def test_imports_between_packages_have_no_cycle():
    try:
        graphlib.TopologicalSorter(package_imports()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"packages import each other: {' -> '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize("low", ["hetjax.models", "hetjax.meshes"])
def test_models_and_meshes_know_nothing_of_the_rest(low):
    for name in MODULES:
        if name.startswith(low):
            assert not [each for each in imports_of(name) if not each.startswith(low)], name


def test_the_root_of_hetjax_has_eight_files_at_most():
    assert len(list((ROOT / "hetjax").glob("*.py"))) <= 8


def test_no_package_has_more_than_twenty_files_without_packages_inside():
    for folder in {path.parent for path in MODULES.values()}:
        inner = [each for each in folder.iterdir() if (each / "__init__.py").exists()]
        assert inner or len(list(folder.glob("*.py"))) <= 20, folder


def test_every_folder_is_a_package_that_is_installed():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {name for name, path in MODULES.items() if path.name == "__init__.py"} == set(setuptools["packages"])
    assert all((path.parent / "__init__.py").exists() for path in MODULES.values())


def test_no_test_file_imports_from_another():
    """What several of them need stands in tests/harness."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = tree_of(path)
        found = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        found += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        found += [
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ]
        assert not [each for each in found if each.startswith("tests.") and ".test_" in each], path
