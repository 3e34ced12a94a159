"""Programs compiled for H100s that are not there: what is read from their texts is what a count by hand gives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from hetjax.compilation.hlo import collectives, largest_arrays, matrix_products, oversized, read_program
from hetjax.compilation.memory_use import memory_use
from tests.harness.absent_gpus import absent_gpus, compiled_for_gpus, needs_compiler

pytestmark = [pytest.mark.target, needs_compiler]

# B batch · S sequence · H heads · G groups of heads that share a key · K head width
B, S, H, G, K = 2, 512, 8, 2, 64
AXES = {"data": 2, "tensor": 4}


def on_one(*dims: int, dtype=jnp.bfloat16, memory: str | None = None) -> jax.ShapeDtypeStruct:
    sharding = SingleDeviceSharding(absent_gpus()[0], memory_kind=memory)
    return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)


def on_all(dims: tuple[int, ...], *axes) -> jax.ShapeDtypeStruct:
    mesh = Mesh(np.array(absent_gpus()).reshape(2, 4), tuple(AXES))
    return jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=NamedSharding(mesh, P(*axes)))


def program(function, *arguments, **options):
    return read_program(compiled_for_gpus(function, *arguments, **options).as_text())


def layers(x, weights):
    def layer(x, weight):
        with jax.named_scope("layer"):
            return jnp.tanh(x @ weight), None

    return jax.lax.scan(layer, x, weights)[0]


@pytest.mark.parametrize("triton_products", [False, True])
def test_a_scan_of_products_by_cublas_and_by_triton(triton_products):
    read = program(layers, on_one(512, 256), on_one(7, 256, 256), triton_products=triton_products)
    (product,) = matrix_products(read).known
    assert product.kind == ("dot" if triton_products else "__cublas$lt$matmul")
    assert (product.flops, product.times, product.layer) == (2 * 512 * 256 * 256, 7, "layer")


def test_a_scan_keeps_its_residuals_in_a_stack_that_is_filled_layer_by_layer():
    def loss(weights, x):
        return layers(x, weights).astype(jnp.float32).sum()

    read = program(jax.grad(loss), on_one(7, 256, 256), on_one(512, 256))
    assert matrix_products(read).flops == 3 * 7 * 2 * 512 * 256 * 256
    arrays = [each for each in largest_arrays(read) if each.shape.dtype == "bf16"]
    assert (str(arrays[0].shape), arrays[0].slices) == ("bf16[7,512,256]", 7)
    one_layer = {"weight_bytes": 2 * 256 * 256, "activation_bytes": 2 * 512 * 256, "sequence_lengths": ()}
    assert oversized(arrays, **one_layer) == []


def test_products_in_eight_bits():
    def multiply(x, weight):
        return jax.lax.dot_general(x, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.bfloat16)

    eight = jnp.float8_e4m3fn
    (product,) = matrix_products(program(multiply, on_one(512, 256, dtype=eight), on_one(128, 256, dtype=eight))).known
    assert (product.kind, product.dtype) == ("__cublas$lt$matmul$f8", "f8e4m3fn")
    assert product.flops == 2 * 512 * 128 * 256


def test_convolutions_of_cudnn_and_their_gradients():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    gradient = jax.grad(lambda *args: (convolve(*args).astype(jnp.float32) ** 2).sum(), (0, 1))
    found = matrix_products(program(gradient, on_one(2, 16, 16, 32), on_one(3, 3, 32, 64)))
    kinds = {each.kind.removeprefix("__cudnn$conv"): each.flops for each in found.known}
    # XLA writes the padding into an array of its own, and cuDNN multiplies its zeros.
    assert kinds == dict.fromkeys(("Forward", "BackwardInput", "BackwardFilter"), 2 * (2 * 8 * 8 * 64) * (3 * 3 * 32))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_cudnn_forward_and_backward(causal):
    attend = partial(jax.nn.dot_product_attention, implementation="cudnn", is_causal=causal)
    arguments = on_one(B, S, H, K), on_one(B, S, G, K), on_one(B, S, G, K)
    # Of 4 x 4 blocks of 128 x 128 the 10 up to the diagonal.
    product = 2 * B * H * S * S * K * (10 if causal else 16) // 16
    assert matrix_products(program(attend, *arguments)).flops == 2 * product
    gradient = jax.grad(lambda *args: attend(*args).astype(jnp.float32).sum(), (0, 1, 2))
    found = matrix_products(program(gradient, *arguments))
    assert sorted(each.flops for each in found.known) == [2 * product, 5 * product]
    assert found.unknown == ()


def test_a_mask_of_cudnn_is_an_array_that_breaks_the_rules():
    def attend(query, key, value, segments):
        mask = (segments[:, :, None] == segments[:, None, :])[:, None]
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")

    one = on_one(1, 4096, H, K)
    read = program(attend, one, one, one, on_one(1, 4096, dtype=jnp.int32))
    assert matrix_products(read).flops == 2 * 2 * H * 4096 * 4096 * K
    limits = {"weight_bytes": 0, "activation_bytes": 2 * 4096 * H * K, "sequence_lengths": {4096}}
    largest, reason = oversized(largest_arrays(read), **limits)[0]
    assert largest.shape.dims[-2:] == (4096, 4096)
    assert reason.endswith(f"bytes, where {4 * 2 * 4096 * H * K} is the most")


def test_attention_of_triton_forward_and_backward():
    from jax.experimental.pallas.ops.gpu import attention

    attend = partial(attention.mha, segment_ids=None, sm_scale=0.1, backward_pass_impl="triton")
    one = on_one(B, S, H, K)
    product = 2 * B * H * S * S * K
    assert matrix_products(program(attend, one, one, one)).flops == 2 * product
    gradient = jax.grad(lambda *args: attend(*args).astype(jnp.float32).sum(), (0, 1, 2))
    found = matrix_products(program(gradient, one, one, one))
    assert sorted(each.flops for each in found.known) == [2 * product, 7 * product]
    assert {each.layer for each in found.known} == {"mha_forward", "mha_backward"}
    assert found.unknown == ()


def test_grouped_products_of_pallas_count_every_row_once_and_those_of_xla_for_every_expert():
    from jax.experimental.pallas.ops.gpu import ragged_dot_mgpu

    blocks = {"block_m": 128, "block_n": 128, "block_k": 64, "max_concurrent_steps": 4, "grid_block_n": 2}
    arguments = on_one(1024, 256), on_one(4, 256, 128), on_one(4, dtype=jnp.int32)
    needed = 2 * 1024 * 256 * 128

    def grouped(x, weights, sizes):
        return ragged_dot_mgpu.ragged_dot(x, weights, group_sizes=sizes, **blocks)

    (product,) = matrix_products(program(grouped, *arguments)).known
    assert (product.kind, product.flops, product.dtype) == ("mosaic_gpu_v2", needed, "bf16")
    assert matrix_products(program(jax.lax.ragged_dot, *arguments)).flops == 4 * needed


def mlp(x, ups, downs):
    """Layers whose weights are gathered along "data" and whose hidden dim is split along "tensor"."""

    def layer(x, weights):
        up, down = weights
        return jnp.tanh(x @ up) @ down, None

    return jax.lax.scan(layer, x, (ups, downs))[0]


def test_a_device_of_a_mesh_does_its_part_and_names_the_axes_it_sends_along():
    weights = on_all((3, 256, 1024), None, "data", "tensor"), on_all((3, 1024, 256), None, "tensor", "data")
    read = program(mlp, on_all((2048, 256), "data"), *weights)
    assert matrix_products(read).flops == 3 * 2 * (2 * 2048 * 256 * 1024) // 8
    found = collectives(read)
    gathers = [each for each in found if each.kind == "all-gather"]
    assert {each.axes(AXES) for each in gathers} == {("data",)}
    assert sum(each.result_bytes * each.times for each in gathers) == 3 * 2 * (256 * 1024 // 4) * 2
    (reduced,) = (each for each in found if each.kind == "all-reduce")
    assert (reduced.axes(AXES), reduced.dtypes, reduced.times) == (("tensor",), ("bf16",), 3)
    assert reduced.result_bytes == 1024 * 256 * 2


def test_a_ring_sends_while_it_multiplies():
    mesh = Mesh(np.array(absent_gpus()).reshape(2, 4), tuple(AXES))
    ring = [(source, (source + 1) % 4) for source in range(4)]

    def hop(index, carry):
        x, total, weight = carry
        return jax.lax.ppermute(x, "tensor", ring), total + x @ weight, weight

    def run(x, weight):
        return jax.lax.fori_loop(0, 4, hop, (x, jnp.zeros_like(x), weight))[1]

    split = P("data", "tensor")
    rotate = jax.shard_map(run, mesh=mesh, in_specs=(split, P()), out_specs=split, check_vma=False)
    read = program(rotate, on_all((2048, 1024), "data", "tensor"), on_all((256, 256)))
    assert matrix_products(read).flops == 4 * 2 * 1024 * 256 * 256
    (sent,) = collectives(read)
    assert (sent.kind, sent.axes(AXES), sent.overlaps) == ("collective-permute", ("tensor",), True)
    assert (sent.times, sent.result_bytes) == (4, 1024 * 256 * 2)


def test_what_lies_in_the_memory_of_the_host_is_counted_apart():
    def park(x):
        return jax.device_put(x + 1, jax.memory.Space.Host)

    compiled = compiled_for_gpus(park, on_one(1024, 1024))
    memory, size = memory_use(compiled), 2 * 1024 * 1024
    assert (memory.host, memory.arguments, memory.outputs) == (size, size, 0)
    assert size <= memory.total < 2.1 * size
    (made,) = largest_arrays(read_program(compiled.as_text()))
    assert (made.bytes, made.made_by) == (size, (("fusion add", 1),))
