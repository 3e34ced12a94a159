"""Kernels on a GPU against plain operations there: `python -m pytest tests/gpu -m gpu -n 0`."""

import jax
import numpy as np
import pytest

from hetjax.config.build import batch_shapes, build_trainer
from hetjax.config.run_config import load_config
from hetjax.models.kernels.checks import KERNELS, KernelCheck, difference
from hetjax.tools.random_batch import random_batch
from tests.harness.compile_quickly import quickly
from tests.harness.gpu_problems import PROBLEMS
from tests.harness.paths import ROOT

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu() -> jax.Device:
    """The first GPU; float32 products there are of full precision."""
    if jax.default_backend() != "gpu":
        pytest.skip("there is no GPU, or JAX lacks the packages for it")
    with jax.default_matmul_precision("highest"):
        yield jax.devices()[0]


@pytest.mark.parametrize("check", KERNELS, ids=lambda check: check.name)
def test_kernels_pass_the_check_ahead_of_a_run(check, gpu):
    if not check.runs_on(gpu):
        pytest.skip(f"{gpu.device_kind} does not have it")
    assert difference(check, gpu) is None


@pytest.mark.parametrize("name", PROBLEMS)
def test_kernels_compute_what_plain_operations_do(name, gpu):
    check = KernelCheck(name, lambda device: True, lambda: PROBLEMS[name](gpu))
    assert difference(check, gpu) is None


def test_a_run_trains_on_a_gpu_as_on_a_cpu(gpu):
    config, _ = load_config(["--config", str(ROOT / "configs/bench/small/omni.yaml"), "--compute_dtype", "bfloat16"])
    batch = random_batch(batch_shapes(config.data, config.model), vocab_size=320)

    def losses(device: jax.Device) -> list[float]:
        trainer = build_trainer(config, devices=[device])
        state, found = trainer.init(0), []
        for _ in range(3):
            state, metrics = trainer.step(state, batch)
            found.append(float(metrics["loss"]))
        return found

    on_gpu = losses(gpu)
    with quickly():
        on_cpu = losses(jax.devices("cpu")[0])
    assert on_gpu[-1] < on_gpu[0]
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0.02)
