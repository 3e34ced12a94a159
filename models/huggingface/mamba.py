"""A Mamba-2 layer as Nemotron-H's checkpoints name and hold it."""

from __future__ import annotations

import math

import numpy as np

from hetjax.models.huggingface.entry import Entry, Slot, Tensors, kernel, reshaped, same
from hetjax.models.parts.mamba import MambaConfig


def mamba_entries(prefix: str, path: str, index: tuple[int, ...], config: MambaConfig, width: int) -> list[Entry]:
    """Return the tensors `prefix` + "in_proj.weight", ... of the layer whose arrays are at `path`, `index` in a stack.

    Theirs are joined: in_proj holds z, x, b, c and dt one after another, and the convolution x, b and c.
    """
    heads, vectors = (config.heads, config.head_dim), (config.groups, config.state)
    streams = {"x": heads, "b": vectors, "c": vectors}
    projections = {"z": heads, **streams, "dt": (config.heads,)}

    def slots(pattern: str, names: dict[str, tuple[int, ...]]) -> tuple[Slot, ...]:
        return tuple(Slot(path=f"{path}/{pattern.format(name)}", index=index) for name in names)

    def read_projections(weight: np.ndarray) -> Tensors:
        return _split(weight.T, axis=1, parts=projections)

    def write_projections(*kernels: np.ndarray) -> Tensors:
        flat = [each.reshape(width, -1) for each in kernels]
        return (np.ascontiguousarray(np.concatenate(flat, axis=1).T),)

    def read_kernels(weight: np.ndarray) -> Tensors:
        return _split(weight[:, 0].T, axis=1, parts=streams)

    def write_kernels(*kernels: np.ndarray) -> Tensors:
        flat = [each.reshape(config.conv_kernel, -1) for each in kernels]
        return (np.ascontiguousarray(np.concatenate(flat, axis=1).T[:, None]),)

    def read_biases(bias: np.ndarray) -> Tensors:
        return _split(bias, axis=0, parts=streams)

    def write_biases(*biases: np.ndarray) -> Tensors:
        return (np.concatenate([each.reshape(-1) for each in biases]),)

    joined = (
        ("in_proj.weight", slots("{}/kernel", projections), read_projections, write_projections),
        ("conv1d.weight", slots("conv_{}/kernel", streams), read_kernels, write_kernels),
        ("conv1d.bias", slots("conv_{}/bias", streams), read_biases, write_biases),
    )
    flat = (math.prod(heads),)
    return [
        *(Entry(names=(prefix + name,), slots=slots, read=read, write=write) for name, slots, read, write in joined),
        *(same(prefix + name, f"{path}/{name}", *index) for name in ("A_log", "D", "dt_bias")),
        reshaped(f"{prefix}norm.weight", f"{path}/norm/scale", *index, theirs=flat, ours=heads),
        kernel(f"{prefix}out_proj.weight", f"{path}/out/kernel", *index, ins=heads, outs=(width,)),
    ]


def _split(array: np.ndarray, *, axis: int, parts: dict[str, tuple[int, ...]]) -> Tensors:
    """Pieces of `array` along `axis`, which is reshaped to the dims of each part in turn."""
    ends = np.cumsum([math.prod(dims) for dims in parts.values()])
    pieces = np.split(array, ends[:-1], axis=axis)
    lead = array.shape[:axis]
    return tuple(piece.reshape(*lead, *dims) for piece, dims in zip(pieces, parts.values(), strict=True))
