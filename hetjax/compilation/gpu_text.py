"""Describes an NVIDIA GPU to XLA, as the text of its `stream_executor.GpuTargetConfigProto`.

Memory and bandwidth are those of `hetjax.meshes.hardware`. What only a compiler asks for stands here: the numbers of
NVIDIA's tuning guides (registers, shared memory), of its white papers (multiprocessors, caches), and the operations of
a tensor core per clock, from which the throughput of the data sheets follows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from hetjax.meshes import Hardware


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Gpu:
    """What a kind of GPU is beside its `Hardware`; memory in bytes, clocks in GHz.

    Attributes:
        name: as its driver calls it, `jax.Device.device_kind`.
        capability: compute capability.
        cores: multiprocessors.
        lanes: float32 units of each.
        clock, tensor_clock: the highest clock, and the one behind the data sheet's throughput of tensor cores.
        shared, shared_by_block: shared memory of a multiprocessor, and the most of it that a block may ask for.
        cache: second-level cache.
        links: NVLinks.
        bfloat16, float64: multiply-adds of a tensor core per clock.
        has_float8: whether tensor cores take 8-bit floats.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    clock: float
    tensor_clock: float
    shared: int
    shared_by_block: int
    cache: int
    links: int
    bfloat16: int
    float64: int
    has_float8: bool


_H100 = _Gpu(
    name="NVIDIA H100 80GB HBM3", capability=(9, 0), cores=132, lanes=128, clock=1.98, tensor_clock=1.8295201,
    shared=233472, shared_by_block=232448, cache=52428800, links=18, bfloat16=512, float64=32, has_float8=True,
)  # fmt: skip

GPUS: Mapping[str, _Gpu] = {
    "A100": _Gpu(
        name="NVIDIA A100-SXM4-80GB", capability=(8, 0), cores=108, lanes=64, clock=1.41, tensor_clock=1.41,
        shared=167936, shared_by_block=166912, cache=41943040, links=12, bfloat16=256, float64=16, has_float8=False,
    ),
    "H100": _H100,
    "H200": dataclasses.replace(_H100, name="NVIDIA H200 141GB HBM3e"),  # the same but for its memory
    "B200": _Gpu(
        name="NVIDIA B200", capability=(10, 0), cores=148, lanes=128, clock=1.965, tensor_clock=1.8353101,
        shared=233472, shared_by_block=232448, cache=132644864, links=18, bfloat16=1024, float64=16, has_float8=True,
    ),
}  # fmt: skip

# Numbers of xla.PrimitiveType.
_INT8, _FLOAT16, _FLOAT32, _FLOAT64, _BFLOAT16 = (2, 6), 10, 11, 12, 16
_INT32, _FLOAT8 = (4, 8), (19, 20, 23, 24, 25, 28, 29, 33)


def gpu_text(hardware: Hardware) -> str:
    """Return the text of an A100, H100, H200 or B200, for `topologies.get_topology_desc(target_config=...)`."""
    gpu = GPUS[hardware.name]
    major, minor = gpu.capability
    # From 9.0 on kernels use instructions of exactly this capability ("9.0a").
    accelerated, letter = ("feature_extension: ACCELERATED_FEATURES", "a") if major >= 9 else ("", "")
    memory = int(hardware.memory_bytes)
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: {gpu.cores} fpus_per_core: {gpu.lanes} clock_rate_ghz: {gpu.clock}
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {gpu.shared_by_block}
  shared_memory_per_core: {gpu.shared}
  l2_cache_size: {gpu.cache} device_memory_size: {memory} memory_bandwidth: {int(hardware.memory_bandwidth)}
  cuda_compute_capability {{ major: {major} minor: {minor} {accelerated} }}
  scalar_unit_description {{ {" ".join(_scalar_rates(gpu))} }}
  matrix_unit_description {{ {" ".join(_matrix_rates(gpu))} }}
  name: "{gpu.name}" device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability {major}.{minor}{letter}"
  model_str: "sm_{major}.{minor}{letter} with {memory}B RAM, {gpu.cores} cores"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
  device_address_bits: 64 pcie_bandwidth: 34359738368 ecc_enabled: true
  device_interconnect_info {{ active_links: {gpu.links} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{gpu.name}"
"""


def _scalar_rates(gpu: _Gpu) -> Iterator[str]:
    doubled = 2 if gpu.bfloat16 >= 512 else 1  # 16-bit numbers go in pairs
    for kind in (*_INT32, _FLOAT64):
        yield _rate(kind, gpu.clock, 64, 1)
    for kind, operations in ((_FLOAT32, 1), (_FLOAT16, doubled), (_BFLOAT16, doubled)):
        yield _rate(kind, gpu.clock, gpu.lanes, operations)


def _matrix_rates(gpu: _Gpu) -> Iterator[str]:
    """Yield the multiply-adds of the four tensor cores of a multiprocessor."""
    rates = {_FLOAT16: gpu.bfloat16, _BFLOAT16: gpu.bfloat16, _FLOAT32: gpu.bfloat16 // 2}
    rates |= dict.fromkeys((*_INT8, *(_FLOAT8 if gpu.has_float8 else ())), 2 * gpu.bfloat16)
    for kind, operations in rates.items():
        yield _rate(kind, gpu.tensor_clock, 4, operations)
    yield _rate(_FLOAT64, gpu.clock, 4, gpu.float64)


def _rate(kind: int, clock: float, units: int, operations: int) -> str:
    return (
        f"rate_infos {{ key: {kind} value {{ clock_rate_ghz: {clock} units_per_core: {units} "
        f"ops_per_clock: {operations} }} }}"
    )
