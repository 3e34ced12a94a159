"""Kernels for GPUs, as far as a machine without any can show: where each is chosen, and what is lowered for CUDA."""

import dataclasses
import types

import jax
import jax._src.cudnn.fused_attention_stablehlo as cudnn
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.models.kernels.attention import attend
from hetjax.models.kernels.checks import CUDNN_ATTENTION, TRITON_ATTENTION
from hetjax.models.kernels.fused_attention import fused_attention, is_fusable
from hetjax.models.parallel.layout_in_force import Splits, layout_in_force
from hetjax.models.parallel.sharded_attention import sharded_attention
from hetjax.models.parallel.zigzag_order import causal_order
from hetjax.models.parts.attention import Attention, Cache

# B batch · S sequence · H heads · G groups · K head width
B, S, H, G, K = 4, 16, 4, 2, 8


def gpu(capability="9.0", platform="gpu"):
    return types.SimpleNamespace(platform=platform, compute_capability=capability)


@pytest.fixture
def cudnn_installed(monkeypatch):
    """Lowering for CUDA asks which cuDNN is installed; a machine without GPUs has none."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91100)


@pytest.fixture
def splits(packed):
    # Triton's lowering asks for the kind of the devices, cuDNN's for devices.
    kind = AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    mesh = AbstractMesh((2, 2), ("data", "tensor"), (AxisType.Auto,) * 2, abstract_device=kind)
    if not packed:
        mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    axes = {"batch": ("data",), "heads": ("tensor",), "kv_heads": ("tensor",)}
    return Splits(mesh=mesh, axes_of=lambda dim: axes.get(dim, ()))


def arrays(dtype=jnp.bfloat16, length=S, width=K):
    shapes = (B, length, H, width), (B, length, G, width), (B, length, G, width)
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]


def fusable(device, dtype=jnp.bfloat16, length=S, width=K) -> bool:
    return is_fusable(arrays(dtype, length, width)[0], device)


def test_16_bits_on_devices_that_have_the_kernel_are_fused_and_nothing_else():
    assert all(fusable(gpu(), dtype) for dtype in (jnp.bfloat16, jnp.float16))
    assert not any(fusable(gpu(), dtype) for dtype in (jnp.float32, jnp.float64))
    assert not any(map(fusable, (gpu("7.5"), gpu("gfx90a"), gpu(platform="cpu"), jax.devices()[0])))


def test_heads_and_lengths_that_the_kernel_does_not_take_are_not_fused():
    assert fusable(gpu(), width=256)
    assert not fusable(gpu("8.0"), width=256)
    assert not fusable(gpu(), width=12)
    assert fusable(gpu(), length=18) and not fusable(gpu(), length=15)


TRITON_KERNELS = ("attention_forward", "attention_query_gradient", "attention_key_gradient")


def attention(causal, segments=None):
    order = causal_order(S) if causal else None
    return lambda query, key, value: sharded_attention(query, key, value, order=order, segments=segments)


def lowered(function, *avals) -> str:
    return jax.jit(function).trace(*avals).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_forward_and_backward_are_lowered_to_the_kernel_and_stay_partitioned(
    cudnn_installed, splits, causal, packed, sharded
):
    avals = arrays()
    if sharded:
        of_heads = NamedSharding(splits.mesh, P("data", None, "tensor"))
        avals = [jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=of_heads) for aval in avals]

    def backward(query, key, value):
        segments = jnp.arange(B * S, dtype=jnp.int32).reshape(B, S) // 4 if packed else None
        with layout_in_force(lambda x, dims: x, splits if sharded else None, gpu()):
            attended, vjp = jax.vjp(attention(causal, segments), query, key, value)
        return vjp(attended)

    text = lowered(backward, *avals)
    heads = f"{B // 2}x{S}x{H // 2}x{K}" if sharded else f"{B}x{S}x{H}x{K}"
    calls = [line for line in text.splitlines() if "custom_call @__" in line]
    assert all(f"tensor<{heads}xbf16>" in call for call in calls)
    if packed:
        # cuDNN would take a bias of [heads, S, S].
        assert [name in call for name, call in zip(TRITON_KERNELS, calls, strict=True)] == [True] * 3
        return
    assert all("custom_call @__cudnn" in call for call in calls)
    assert ["Backward" in call for call in calls] == [False, True]
    assert all(("CAUSAL" in call) == causal for call in calls)


@pytest.mark.parametrize("form", ["causal", "all", "cache"])
def test_attention_takes_the_kernel_in_training_and_not_with_a_cache(cudnn_installed, form):
    definition, weights = nnx.split(Attention(8, H, G, K, rngs=nnx.Rngs(0)))
    weights = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.bfloat16), weights)

    def run(weights, x):
        attention = nnx.merge(definition, weights)
        with layout_in_force(lambda x, dims: x, device=gpu()):
            if form == "cache":
                positions = jnp.broadcast_to(jnp.arange(S), (B, S))
                slots = Cache(*[jnp.zeros((B, S, G, K), jnp.bfloat16)] * 2)
                return attention(x, positions=positions, cache=slots)[0]
            return attention(x, order=causal_order(S) if form == "causal" else None)[0]

    text = lowered(run, weights, jax.ShapeDtypeStruct((B, S, 8), jnp.bfloat16))
    assert ("custom_call @__cudnn" in text) == (form != "cache")
    assert ("CAUSAL" in text) == (form == "causal")


@pytest.mark.parametrize("causal", [False, True])
def test_the_same_call_without_the_kernel_equals_attend(monkeypatch, causal):
    """What is asked of the kernel is what `attend` computes: JAX runs the same call by plain operations."""
    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, implementation, **k: plain(*a, **k))
    random = np.random.default_rng(0)
    query, key, value = (random.normal(size=aval.shape).astype(np.float32) for aval in arrays())
    got = fused_attention(query, key, value, causal=causal)
    want = attend(query, key, value, jnp.arange(S)[None] if causal else None)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_kernels_that_are_replaced_are_not_lowered(cudnn_installed, packed):
    segments = jnp.zeros((B, S), jnp.int32) if packed else None

    def calls(*replaced):
        with layout_in_force(lambda x, dims: x, device=gpu(), replaced_kernels=frozenset(replaced)):
            text = lowered(lambda *x: attention(True, segments)(*x), *arrays())
        return "custom_call @__cudnn" in text, "attention_forward" in text

    assert calls() == (not packed, packed)
    # Without cuDNN's, full sequences take the kernel that takes segments.
    assert calls(CUDNN_ATTENTION) == (False, True)
    assert calls(CUDNN_ATTENTION, TRITON_ATTENTION) == (False, False)


@pytest.mark.parametrize("packed", [False, True])
def test_it_is_lowered_for_shards_of_the_batch_that_run_side_by_side(cudnn_installed, splits, packed):
    """As `hetjax.programs.data_shards` runs a model: under a vmap over `data`, whose layout splits `tensor` alone."""
    segments = jnp.arange(B * S, dtype=jnp.int32).reshape(B, S) // 4 if packed else None
    inner = dataclasses.replace(splits, axes_of=lambda dim: () if dim == "batch" else splits.axes_of(dim))

    def run(query, key, value, segments):
        with layout_in_force(lambda x, dims: x, inner, gpu()):
            attended, vjp = jax.vjp(attention(True, segments), query, key, value)
            return attended, vjp(attended)

    avals = [jax.ShapeDtypeStruct((2, *aval.shape), aval.dtype) for aval in arrays()]
    if packed:
        segments = jnp.stack([segments] * 2)
    by_shard = jax.vmap(run, in_axes=(0, 0, 0, 0 if packed else None), spmd_axis_name="data")
    text = lowered(by_shard, *avals, segments) if packed else lowered(lambda *x: by_shard(*x, None), *avals)
    assert ("attention_forward" if packed else "fmha") in text
