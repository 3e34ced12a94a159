"""`import hetjax` loads names on first use, the launcher loads no JAX, and a user's own files are not in the way."""

import ast
import os
import subprocess
import sys

import pytest

import hetjax
from tests.harness.paths import ROOT


def run_python(code, folder):
    """Run code in a fresh process and another working directory, with hetjax as it is installed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_hetjax_imports_no_jax(tmp_path):
    code = "import hetjax, sys; assert hetjax.__version__ and 'Trainer' in dir(hetjax); print('jax' in sys.modules)"
    assert run_python(code, tmp_path) == "False\n"


def test_launching_imports_no_jax_nor_numpy(tmp_path):
    # Each line in one write: two processes share the output.
    code = (
        "import sys; from hetjax.cli import main\n"
        "main(['launch', '--processes', '2', '--', '-c', 'import os; os.write(1, bytes([49, 10]))'])\n"
        "print({'jax', 'flax', 'optax', 'numpy'} & set(sys.modules))"
    )
    assert run_python(code, tmp_path).splitlines() == ["1", "1", "set()"]


def test_the_list_of_tools_imports_none_of_them(tmp_path):
    code = (
        "import sys; from hetjax.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: print(stop.code, 'jax' in sys.modules, 'hetjax.tools.launch' in sys.modules)"
    )
    printed = run_python(code, tmp_path)
    assert "Time a run's training" not in printed and "Show the placement of every module of a run" in printed
    assert printed.endswith("0 False False\n")


def test_train_help_imports_no_trainer(tmp_path):
    code = (
        "import sys; from hetjax.cli import train_main\n"
        "try: train_main(['--help'])\n"
        "except SystemExit as stop: print(stop.code)\n"
        "heavy = {'hetjax.trainer', 'hetjax.checkpoint', 'hetjax.training', 'matplotlib', 'tensorboardX'}\n"
        "print(heavy & set(sys.modules))"
    )
    printed = run_python(code, tmp_path)
    assert "--optimizer.learning_rate" in printed
    assert printed.endswith("0\nset()\n")


def test_every_public_name_is_there():
    assert all(getattr(hetjax, name) for name in hetjax.__all__)
    with pytest.raises(AttributeError, match="module 'hetjax' has no attribute 'Trainr'"):
        hetjax.Trainr  # noqa: B018


def test_the_imports_for_editors_are_those_made_on_first_use():
    tree = ast.parse((ROOT / "hetjax" / "__init__.py").read_text())
    [guarded] = [node for node in tree.body if isinstance(node, ast.If)]
    found = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert found == hetjax._DEFINED_IN
    assert sorted(found) == hetjax.__all__


def test_files_of_a_user_named_models_and_meshes_are_not_in_the_way(tmp_path):
    for name in ("models", "meshes"):
        (tmp_path / f"{name}.py").write_text("MINE = True\n")
    code = "import hetjax, hetjax.models, hetjax.meshes, models, meshes; print(models.MINE, meshes.MINE, end=' ')\n"
    code += "print(hetjax.Trainer.__name__, hetjax.models.LanguageModel.__name__, hetjax.meshes.Layout.__name__)"
    assert run_python(code, tmp_path) == "True True Trainer LanguageModel Layout\n"
