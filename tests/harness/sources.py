"""The source of the packages, module by module, for tests of how they stand to each other."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from tests.harness.paths import ROOT

INSTALLED = {"hetjax": "hetjax", "models": "hetjax.models", "meshes": "hetjax.meshes"}


def sources() -> Iterator[tuple[str, Path]]:
    """Every module by its name, with its file."""
    for folder, package in INSTALLED.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


MODULES = dict(sources())


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A file, parsed."""
    return ast.parse(path.read_text())
