"""Every test runs on eight CPU devices unless it starts processes of its own."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import jax
import pytest

from hetjax.cli import train_main
from hetjax.config.build import build_trainer
from hetjax.config.run_config import load_config
from tests.harness.compile_once import compile_equal_programs_once
from tests.harness.compile_quickly import make_kernels_quickly
from tests.harness.digits_run import CONFIG, write_dataset
from tests.harness.marks import OF_FEW_FILES
from tests.harness.paths import ROOT

make_kernels_quickly()
compile_equal_programs_once()
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config):
    """Tests of a GPU, asked for by their mark, run where JAX finds one; a CPU stays at hand beside it."""
    if config.getoption("markexpr") == "gpu":
        jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than cores: while some tests wait for processes that they started, others compute."""
    return (os.cpu_count() or 1) + 1


def pytest_ignore_collect(collection_path, config):
    """A run for one of the marks of few files imports those files alone, where every worker would import all."""
    mark = config.getoption("markexpr")
    if mark not in OF_FEW_FILES or not collection_path.match("test_*.py"):
        return None
    return f"mark.{mark}" not in collection_path.read_text() or None


def pytest_collection_modifyitems(items):
    """Long tests first, those with a timeout of their own (if only the default's), so that no worker is left alone with
    one at the end."""
    items.sort(key=lambda item: -max((mark.args[0] for mark in item.iter_markers("timeout") if mark.args), default=0))


def pytest_collection_finish():
    """What stands when tests begin is never garbage, and a heap of traced programs is searched for it seldom."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Compile fast rather than well: numbers are checked here, not speed. Slow tests are optimized as a user's run is,
    but for those marked quick, and so are those for GPUs; the kernels are made quickly in all of them
    (`tests.harness.compile_quickly`).

    A hook rather than a fixture: fixtures of a whole module compile before those of its first test."""
    quick = "quick" in item.keywords or not any(mark in item.keywords for mark in ("slow", "gpu", "target"))
    jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture
def float64():
    """Run a test with 64-bit types, and leave the rest of the suite at 32."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


TINY = """
name: tiny
placement:
  vision: {devices: 0-1, data: 2}
  llm: {devices: 2-3, data: 1, tensor: 2}
schedule: 1f1b
microbatches: 2
model:
  vision: {image_size: 8, patch_size: 4, width: 16, layers: 2, heads: 2, mlp_width: 32, projector_width: 32,
           output_width: 24}
  llm: {vocab_size: 40, width: 24, layers: 3, heads: 4, kv_heads: 2, head_dim: 6, mlp_width: 48}
data: {train: none.jsonl, seq_len: 12, batch_size: 8, processor: {images: 2}}
optimizer: {learning_rate: 1.0e-3}
steps: 10
"""


@pytest.fixture
def tiny_yaml(tmp_path):
    """A run of a tiny encoder and language model on four devices."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def make_config(tiny_yaml):
    """The settings of that run, with changes given as on the command line."""
    return lambda *changes: load_config(["--config", str(tiny_yaml), *changes])[0]


@pytest.fixture
def make_trainer(make_config):
    return lambda *changes: build_trainer(make_config(*changes))


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run train.py on a small dataset with further arguments: (exit code, what it printed on stderr)."""
    monkeypatch.chdir(ROOT)

    def call(*arguments: str, data: Path | None = None) -> tuple[int | None, str]:
        data = data or write_dataset(tmp_path / "data")
        common = ["--config", CONFIG, "--data.train", str(data), "--data.eval", "null", "--data.batch_size", "8"]
        code = None
        try:
            train_main([*common, "--run_dir", str(tmp_path / "run"), "--steps", "2", *arguments])
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err

    return call
