"""Eight H100s that are not there, to compile for on a machine with the CUDA compiler packages."""

import functools
import importlib.util

import jax
import pytest
from jax.experimental import topologies

needs_compiler = pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
    reason="compiling for GPUs takes the CUDA compiler packages",
)

# A `stream_executor.GpuTargetConfigProto` as text.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  name: "NVIDIA H100 80GB HBM3" dnn_version: "9.10.0"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@functools.cache
def absent_gpus() -> list[jax.Device]:
    """The devices; arrays cannot be put on them."""
    return topologies.get_topology_desc(platform="cuda", topology="1x1x8", target_config=H100).devices


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
