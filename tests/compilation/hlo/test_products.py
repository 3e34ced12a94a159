"""FLOPs of programs compiled here, and of lines as XLA writes them for GPUs and TPUs, against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.compilation.hlo import matrix_products, read_program
from hetjax.models.kernels.attention_scores import Packed


def products(function, *shapes, **options):
    """What a function's compiled text says, for shapes and dtypes or shardings."""
    arguments = [
        shape if isinstance(shape, jax.ShapeDtypeStruct) else jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in shapes
    ]
    return matrix_products(read_program(jax.jit(function).lower(*arguments).compile().as_text()), **options)


def of_lines(*lines: str, **options):
    """What the text of an entry computation with these lines says."""
    text = "\n".join(["ENTRY %main (p: f32[]) -> f32[] {", *lines, "}"])
    return matrix_products(read_program(text), **options)


def layers(x, weights):
    return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0]


def test_a_scan_counts_as_often_as_it_runs():
    found = products(layers, (8, 16), (7, 16, 16))
    assert [(each.kind, each.dtype, each.times) for each in found.known] == [("dot", "f32", 7)]
    assert found.flops == 7 * 2 * 8 * 16 * 16
    assert found.unknown == ()


def test_a_backward_does_twice_the_products_of_its_forward():
    gradient = jax.grad(lambda weights, x: layers(x, weights).sum())
    assert products(gradient, (7, 16, 16), (8, 16)).flops == 3 * 7 * 2 * 8 * 16 * 16


def test_scans_inside_of_scans_multiply():
    def outer(x, weights):
        return jax.lax.scan(lambda x, _: (layers(x, weights), None), x, None, length=5)[0]

    assert products(outer, (8, 16), (7, 16, 16)).flops == 5 * 7 * 2 * 8 * 16 * 16


def test_batches_of_matrices():
    found = products(lambda x, y: jnp.einsum("hij,hkj->hik", x, y), (3, 4, 5), (3, 6, 5))
    assert found.flops == 2 * 3 * 4 * 5 * 6


def test_a_device_counts_its_own_part():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "tensor"))

    def shape(sizes, *axes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))

    def mlp(x, up, down):
        return jnp.tanh(x @ up) @ down

    found = products(mlp, shape((16, 32), "data"), shape((32, 64), None, "tensor"), shape((64, 32), "tensor"))
    assert found.flops == 2 * (2 * 16 * 32 * 64) // 8


CONVOLUTIONS = {
    "strided, padded": ((2, 9, 8, 4), (3, 3, 4, 6), {"window_strides": (2, 2), "padding": "SAME"}),
    "no padding": ((2, 9, 8, 4), (3, 2, 4, 6), {"window_strides": (1, 1), "padding": "VALID"}),
    "dilated kernel": (
        (1, 12, 12, 2),
        (3, 3, 2, 2),
        {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (2, 3)},
    ),
    "dilated input": (
        (1, 5, 5, 2),
        (3, 3, 2, 2),
        {"window_strides": (1, 1), "padding": ((1, 2), (1, 2)), "lhs_dilation": (2, 2)},
    ),
    "groups": ((2, 8, 8, 6), (3, 3, 2, 9), {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 3}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_and_its_gradients_count_products_with_elements_alone(name):
    x, kernel, options = CONVOLUTIONS[name]

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    # With ones everywhere a result is the number of its products.
    needed = 2 * int(convolve(jnp.ones(x), jnp.ones(kernel)).sum())
    assert products(convolve, x, kernel).flops == needed
    gradients = products(jax.grad(lambda x, kernel: (convolve(x, kernel) ** 2).sum(), (0, 1)), x, kernel)
    assert gradients.flops == 3 * needed


def test_a_conditional_counts_its_costliest_branch_or_its_cheapest():
    def choose(index, x, weight):
        branches = [lambda x: x, lambda x: x @ weight, lambda x: (x @ weight) @ weight]
        return jax.lax.switch(index, branches, x)

    arguments = jax.ShapeDtypeStruct((), jnp.int32), (8, 16), (16, 16)
    assert products(choose, *arguments).flops == 2 * 2 * 8 * 16 * 16
    cheapest = products(choose, *arguments, branch=min)
    assert (cheapest.flops, cheapest.known) == (0, ())


def test_a_computation_that_branches_share_counts_once():
    text = """
%product (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  ROOT %d = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
ENTRY %main (i: s32[], x: f32[8,8]) -> f32[8,8] {
  %i = s32[] parameter(0)
  %x = f32[8,8]{1,0} parameter(1)
  ROOT %c = f32[8,8]{1,0} conditional(%i, %x, %x), branch_computations={%product, %product}
}"""
    assert matrix_products(read_program(text)).flops == 2 * 8**3


def until(count, x, weight):
    return jax.lax.while_loop(lambda c: c[0] < count, lambda c: (c[0] + 1, jnp.tanh(c[1] @ weight)), (0, x))[1]


def test_a_loop_of_unknown_length_is_an_error_without_a_bound():
    arguments = jax.ShapeDtypeStruct((), jnp.int32), (8, 16), (16, 16)
    with pytest.raises(
        ValueError, match=r"how often the computation or loop with the body \S+ iterates \(while\S* in main"
    ):
        products(until, *arguments)
    assert products(until, *arguments, loop_bound=3).flops == 3 * 2 * 8 * 16 * 16
    assert products(until, *arguments, loop_bound=0).flops == 0


def test_a_loop_of_unknown_length_without_products_is_none():
    def double(count, x):
        return jax.lax.while_loop(lambda c: c[0] < count, lambda c: (c[0] + 1, 2 * c[1]), (0, x))[1]

    assert (
        products(lambda n, x, w: double(n, x) @ w, jax.ShapeDtypeStruct((), jnp.int32), (8, 16), (16, 16)).flops == 4096
    )


def test_a_call_that_might_multiply_is_named():
    found = products(lambda x: jnp.linalg.cholesky(x @ x), (8, 8))
    assert found.flops == 2 * 8**3
    assert [each.kind for each in found.unknown] == ["lapack_spotrf_ffi"]


def test_a_call_that_might_multiply_is_named_in_every_branch():
    text = """
%known (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  ROOT %d = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
%unknown (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  ROOT %c = f32[8,8]{1,0} custom-call(%x), custom_call_target="somebody's"
}
ENTRY %main (i: s32[], x: f32[8,8]) -> f32[8,8] {
  %i = s32[] parameter(0)
  %x = f32[8,8]{1,0} parameter(1)
  ROOT %c = f32[8,8]{1,0} conditional(%i, %x, %x), branch_computations={%known, %unknown}
}"""
    found = matrix_products(read_program(text))
    assert (found.flops, [each.kind for each in found.unknown]) == (2 * 8**3, ["somebody's"])


def test_conditionals_inside_of_conditionals_choose_for_themselves():
    def choose(outer, inner, x, weight):
        one, two = lambda x: x @ weight, lambda x: (x @ weight) @ weight
        either = lambda x: jax.lax.switch(inner, [one, two], x)  # noqa: E731
        return jax.lax.switch(outer, [either, lambda x: two(two(x))], x)

    index = jax.ShapeDtypeStruct((), jnp.int32)
    product = 2 * 8 * 16 * 16
    assert products(choose, index, index, (8, 16), (16, 16)).flops == 4 * product
    assert products(choose, index, index, (8, 16), (16, 16), branch=min).flops == product


GEMM = """backend_config={"operation_queue_id":"0","gemm_backend_config":{"beta":1,"dot_dimension_numbers":{\
"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],\
"rhs_batch_dimensions":[]},"epilogue":"BIAS_RELU"}}"""


@pytest.mark.parametrize("target", ["__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8"])
def test_products_of_cublas(target):
    found = of_lines(
        "  %x = bf16[512,256]{1,0} parameter(0)",
        "  %w = bf16[256,64]{1,0} parameter(1)",
        "  %b = bf16[64]{0} parameter(2)",
        "  ROOT %c = (bf16[512,64]{1,0}, s8[4194304]{0}) custom-call(%x, %w, %b), "
        f'custom_call_target="{target}", metadata={{op_name="jit(f)/mlp/dot_general"}}, {GEMM}',
    )
    (product,) = found.known
    assert (product.kind, product.layer, product.dtype) == (target, "mlp", "bf16")
    assert found.flops == 2 * 512 * 64 * 256


def cudnn_line(result: str, operands: str, target: str, mask: str, window: int = 0) -> str:
    return (
        f'  ROOT %c = {result} custom-call({operands}), custom_call_target="{target}", '
        'operand_layout_constraints={bf16[2,1024,16,128]{3,2,1,0}}, metadata={op_name="jit(f)/attention/fwd"}, '
        'backend_config={"cudnn_fmha_backend_config": {"fmha_scale": 0.5, "intermediate_tensor_shape": '
        '{"element_type": "BF16", "dimensions": ["2", "16", "1024", "512"], "tuple_shapes": []}, '
        f'"mask_type": "{mask}", "sliding_window_length": {window}, "max_seg_per_batch": 1}}}}'
    )


QKV = (
    "  %q = bf16[2,1024,16,128]{3,2,1,0} parameter(0)",
    "  %k = bf16[2,512,4,128]{3,2,1,0} parameter(1)",
    "  %v = bf16[2,512,4,64]{3,2,1,0} parameter(2)",
)
SCORES = 2 * 16 * 1024 * 512


@pytest.mark.parametrize(
    ("mask", "window", "scores"),
    [
        ("NO_MASK", 0, SCORES),
        ("PADDING", 0, SCORES),
        # 26 of 8 x 4 blocks of 128 x 128 lie on the diagonal or below.
        ("CAUSAL", 0, SCORES * 26 // 32),
        ("PADDING_CAUSAL", 0, SCORES * 26 // 32),
        ("CAUSAL", 128, 2 * 16 * 1024 * 128),
    ],
)
def test_attention_of_cudnn(mask, window, scores):
    forward = cudnn_line("(bf16[2,16,1024,64]{3,1,2,0}, u8[0]{0})", "%q, %k, %v", "__cudnn$fmhaSoftmax", mask, window)
    assert of_lines(*QKV, forward).flops == 2 * scores * (128 + 64)
    target = "__cudnn$fmhaScaleBiasSoftmaxBackward"
    backward = cudnn_line("(bf16[2,16,1024,128]{3,1,2,0}, u8[0]{0})", "%q, %k, %v, %q", target, mask, window)
    # Scores again, and the gradients of both products: three with the width of keys, two with that of values.
    assert of_lines(*QKV, backward).flops == 2 * scores * (3 * 128 + 2 * 64)


KERNEL_TEXT = """HloModule jit_f, is_scheduled=true

FileNames
1 "/x/model.py"
2 "/x/transposed_ragged_dot_mgpu.py"

FunctionNames
1 "Experts.__call__"
2 "transposed_ragged_dot"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=0 end_column=0}
2 {file_name_id=2 function_name_id=2 line=203 end_line=203 column=9 end_column=38}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}


ENTRY %main (n: s32[4], x: bf16[96,32], y: bf16[96,16]) -> bf16[4,32,16] {
  %n = s32[4]{0} parameter(0)
  %x = bf16[96,32]{1,0} parameter(1)
  %y = bf16[96,16]{1,0} parameter(2)
  ROOT %k = bf16[4,32,16]{2,1,0} custom-call(%n, %n, %n, %n, %n, /*index=5*/%x, %y), \
custom_call_target="mosaic_gpu_v2", metadata={op_name="jit(f)/experts/body/mpmd_map" stack_frame_id=FRAME}, \
backend_config={module = "ML\\EFR\\01, metadata={op_name=\\22no\\22} calls=%main )"}
}
"""


def test_a_kernel_is_known_by_the_function_that_calls_it():
    found = matrix_products(read_program(KERNEL_TEXT.replace("FRAME", "2")))
    assert [(each.kind, each.layer, each.dtype) for each in found.known] == [("mosaic_gpu_v2", "experts", "bf16")]
    assert found.flops == 2 * 96 * 32 * 16


def test_a_kernel_that_is_not_known_is_named():
    found = matrix_products(read_program(KERNEL_TEXT.replace("FRAME", "1")))
    assert (found.flops, found.known) == (0, ())
    assert [each.op_name for each in found.unknown] == ["jit(f)/experts/body/mpmd_map"]


@pytest.mark.parametrize(
    ("name", "width", "products", "scores"),
    [
        # Blocks of 128 x 128, of heads filled up to a power of two.
        ("mha_forward", 64, 2 * 64, 256 * 256),
        ("causal/mha_forward", 64, 2 * 64, 3 * 128 * 128),
        ("transpose(jvp(mha_backward_causal))", 64, 7 * 64, 3 * 128 * 128),
        ("noncausal/mha_forward", 64, 2 * 64, 256 * 256),
        ("causal_mha_forward", 64, 2 * 64, 3 * 128 * 128),
        ("packed/mha_forward", 64, 2 * 64, 256 * 256),
        ("mha_forward", 80, 2 * 128, 256 * 256),
        ("transpose(jvp(mha_backward))", 64, 7 * 64, 256 * 256),
        ("mha_preprocess_backward", 64, 0, 0),
        # Blocks of 128 x 64 forward and 64 x 64 backward, of heads filled up to a multiple of 16.
        ("attention_forward", 64, 2 * 64, 256 * 256),
        ("attention_forward", 72, 2 * 80, 256 * 256),
        ("attention_query_gradient", 80, 3 * 80, 256 * 256),
        ("transpose(jvp(attention_forward))/attention_key_gradient", 64, 4 * 64, 256 * 256),
        ("causal/attention_forward", 64, 2 * 64, 6 * 128 * 64),
        ("transpose(jvp(causal))/attention_query_gradient", 64, 3 * 64, 10 * 64 * 64),
        ("packed/attention_forward", 64, 2 * 64, 2 * 128 * 128),
        ("causal/packed/attention_key_gradient", 64, 4 * 64, 2 * 3 * 64 * 64),
    ],
)
def test_attention_of_triton_counts_the_blocks_and_channels_that_its_kernels_work_on(name, width, products, scores):
    lines = (
        f"  %q = bf16[2,256,8,{width}]{{3,2,1,0}} parameter(0)",
        "  %s = s32[2,256]{1,0} parameter(1)",
        f"  ROOT %c = bf16[2,256,8,{width}]{{3,2,1,0}} custom-call(%s, %q, %q, %q), "
        'custom_call_target="__gpu$xla.gpu.triton", '
        f'metadata={{op_name="jit(f)/jit(mha)/{name}/pallas_call"}}, backend_config={{debug = false}}',
    )
    found = of_lines(*lines, packing=(Packed(256, 128),))
    assert (found.flops, found.unknown) == (2 * 2 * 8 * scores * products, ())


def test_a_kernel_of_a_tpu_says_its_flops():
    line = (
        '  ROOT %c = f32[8]{0} custom-call(), custom_call_target="tpu_custom_call", metadata={op_name="splash"}, '
        'backend_config={"custom_call_config": {"body": "TUzv", "cost_estimate": {"flops": 123456, "bytes": 1}}}'
    )
    assert of_lines(line).flops == 123456


def test_products_of_a_tpu_are_convolutions_without_a_window():
    found = of_lines(
        "  %x = bf16[512,256]{1,0:T(8,128)(2,1)S(1)} parameter(0)",
        "  %w = bf16[256,64]{1,0:T(8,128)(2,1)} parameter(1)",
        "  ROOT %c = f32[512,64]{1,0:T(8,128)} convolution(%x, %w), dim_labels=bf_io->bf",
    )
    assert found.flops == 2 * 512 * 64 * 256


def test_a_ragged_dot_that_stays_one_counts_every_row_once():
    found = of_lines(
        "  %x = bf16[96,32]{1,0} parameter(0)",
        "  %w = bf16[4,32,16]{2,1,0} parameter(1)",
        "  %n = s32[4]{0} parameter(2)",
        "  ROOT %r = f32[96,16]{1,0} ragged-dot(%x, %w, %n), lhs_contracting_dims={1}, rhs_contracting_dims={1}, "
        "lhs_ragged_dims={0}, rhs_group_dims={0}",
    )
    assert found.flops == 2 * 96 * 32 * 16
