"""Eight H100s that are not there, to compile for on a machine with the CUDA compiler packages."""

import importlib.util

import jax
import pytest

from hetjax.compilation.targets import target_devices

needs_compiler = pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
    reason="compiling for GPUs takes the CUDA compiler packages",
)


def absent_gpus() -> tuple[jax.Device, ...]:
    """The devices; arrays cannot be put on them."""
    return target_devices("h100x8")


def compiled_for_gpus(function, *arguments, triton_products: bool = False) -> jax.stages.Compiled:
    """Compile a function of shapes with shardings of these devices, optimized as for a run.

    Triton's products take their tiles from timing, which nothing can do here: some do not compile.
    """
    quick = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        return jax.jit(function).lower(*arguments).compile({"xla_gpu_enable_triton_gemm": triton_products})
    finally:
        jax.config.update("jax_disable_most_optimizations", quick)
