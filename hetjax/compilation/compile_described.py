"""Compiles programs for devices that are only described, those that are alike once."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import defaultdict

import jax
from jax.sharding import Mesh

# Nothing is timed on a device that is not there, and without that some products fail in Triton ("Couldn't find output
# tile sizes"); cuBLAS needs no choice.
_GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}

_compiled: weakref.WeakValueDictionary[str, jax.stages.Compiled] = weakref.WeakValueDictionary()
_turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def compile_described(lowered: jax.stages.Lowered, mesh: Mesh) -> jax.stages.Compiled:
    """Compile a program for a mesh of described devices, or return that of another mesh where both are alike.

    They are where the text is the same and the devices of the two meshes lie in their hosts alike; then the results'
    shardings name the other mesh.
    """
    key = _key(lowered, mesh)
    # Whoever comes second waits for the first.
    with _turns[key]:
        found = _compiled.get(key)
        if found is None:
            options = _GPU_OPTIONS if mesh.devices.flat[0].platform == "gpu" else {}
            found = _compiled[key] = lowered.compile(options)
        return found


def _key(lowered: jax.stages.Lowered, mesh: Mesh) -> str:
    hosts: dict[int, int] = {}
    place = [hosts.setdefault(device.process_index, len(hosts)) for device in mesh.devices.flat]
    kind = mesh.devices.flat[0].device_kind
    return hashlib.sha256(f"{kind} {tuple(mesh.shape.items())} {place}\n{lowered.as_text()}".encode()).hexdigest()
