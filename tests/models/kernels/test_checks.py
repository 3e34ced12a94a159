"""Kernels are compared with the portable path, and one that fails or differs is replaced."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.errors import ConfigError
from hetjax.execution.kernel_choice import replaced_kernels
from hetjax.models.kernels import checks
from hetjax.models.kernels.checks import KERNELS, KernelCheck, Problem, difference
from hetjax.models.kernels.triton_attention import triton_kernel

INTERPRETED = triton_kernel(interpret=True)

X = np.arange(1.0, 5.0, dtype=np.float32)


def kernel(name, function, runs_on=lambda device: True):
    return KernelCheck(name, runs_on, lambda: Problem(function, lambda x: 2 * x, (X,), 1e-3))


def fail(x):
    raise ValueError("no such instruction\nand much more")


GOOD, OFF, BAD = kernel("good", lambda x: x + x), kernel("off", lambda x: 2.01 * x), kernel("bad", fail)
NAN = kernel("nan", lambda x: x * jnp.nan)


def test_what_a_kernel_gets_wrong_is_said():
    device = jax.devices()[0]
    assert difference(GOOD, device) is None
    assert (
        difference(OFF, device)
        == "it differs from the portable path by 0.005 of the largest number, where 0.001 may be"
    )
    assert difference(NAN, device).startswith("it differs from the portable path by inf")
    assert difference(BAD, device) == "it fails with ValueError: no such instruction"


def test_kernels_that_fail_or_differ_are_replaced_with_a_line_each(caplog):
    elsewhere = kernel("elsewhere", fail, lambda device: False)
    assert replaced_kernels("auto", jax.devices(), (GOOD, OFF, BAD, elsewhere)) == {"off", "bad"}
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert (
        lines[1] == "the portable path replaces the kernel 'bad' on cpu: it fails with ValueError: no such instruction"
    )


def test_portable_replaces_all_and_tries_none(caplog):
    assert replaced_kernels("portable", jax.devices(), (GOOD, BAD)) == {"good", "bad"}
    assert not caplog.records


def test_devices_that_are_not_there_count_as_good():
    absent = types.SimpleNamespace(platform="gpu", compute_capability="9.0", process_index=0, id=0)
    assert replaced_kernels("auto", [absent], (BAD, *KERNELS)) == frozenset()


def test_cpus_have_none_of_the_kernels():
    assert not [kernel for kernel in KERNELS if kernel.runs_on(jax.devices()[0])]


def test_another_setting_is_refused():
    with pytest.raises(ConfigError, match="kernels='fast'; give one of auto, portable"):
        replaced_kernels("fast", jax.devices())


@pytest.mark.slow
@pytest.mark.quick
def test_the_triton_kernel_passes_its_check_when_interpreted_and_another_scale_does_not(monkeypatch):
    (check,) = [kernel for kernel in KERNELS if kernel.name == checks.TRITON_ATTENTION]
    monkeypatch.setattr(checks, "TRITON", INTERPRETED)
    assert difference.__wrapped__(check, jax.devices()[0]) is None
    wrong = INTERPRETED._replace(forward=lambda query, *rest: INTERPRETED.forward(query * 1.2, *rest))
    monkeypatch.setattr(checks, "TRITON", wrong)
    assert "differs" in difference.__wrapped__(check, jax.devices()[0])
