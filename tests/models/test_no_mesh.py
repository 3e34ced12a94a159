"""Only `hetjax.models.parallel` names a mesh: layers, kernels and models name dims."""

import re

import pytest

from tests.harness.paths import ROOT

SOURCES = [path for path in sorted((ROOT / "models").rglob("*.py")) if path.parent.name != "parallel"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_outside_of_parallel_names_a_mesh(path):
    assert not re.findall(r"\b(?:Mesh|NamedSharding|PartitionSpec|shard_map|splits_in_force|psum)\b", path.read_text())


@pytest.mark.parametrize("path", sorted((ROOT / "models" / "kernels").glob("*.py")), ids=lambda path: path.name)
def test_kernels_import_neither_layers_nor_what_splits_them(path):
    assert not re.search(r"hetjax\.models\.(parts|parallel|dims)\b", path.read_text().replace("`", "")), path
