"""The compiler options of programs for GPUs, and that none are set elsewhere."""

import types

import jax
import pytest

from hetjax.compilation.gpu_options import gpu_options

GPU = types.SimpleNamespace(platform="gpu")


def test_one_option_that_this_compiler_knows_is_set_on_gpus_alone():
    options = gpu_options(GPU, {})
    assert len(options) == 1 and next(iter(options)).endswith("all_gather")
    # An option that the compiler lacks would be refused.
    assert jax.jit(lambda: 3, compiler_options=options)() == 3
    assert gpu_options(jax.devices()[0], {}) == {}
    assert gpu_options(GPU, {}, nested_loops=True) == {}


@pytest.mark.parametrize("name", ["xla_gpu_pipeline_all_gather=default", "xla_gpu_enable_pipelined_all_gather=false"])
def test_what_the_user_sets_stays(name):
    assert gpu_options(GPU, {"XLA_FLAGS": f"--xla_dump_to=there --{name}"}) == {}
