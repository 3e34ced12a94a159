"""FLOPs of the library calls and hand-written kernels that a compiled program calls by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from hetjax.compilation.hlo.convolution import convolution_flops
from hetjax.compilation.hlo.shapes import Shape
from hetjax.models.kernels.attention_scores import Packing, Seen, score_count, seen_in
from hetjax.models.kernels.triton_attention import backward_blocks, forward_blocks

# B batch · H heads · S queries · T keys · K head width · E experts · M rows · N columns


class CustomCall(NamedTuple):
    """What the text says of a call of a library or of a kernel written by hand.

    Attributes:
        target: the name of what is called; all Pallas kernels of a backend share one.
        op_name: the stack of JAX names under which it was traced; that of a kernel ends with its own name and
            "pallas_call".
        functions: the functions that it was called from, the innermost first.
        operands, results: shapes.
        attributes, backend_config: as written.
        packing: the segments that are assumed where they divide the rows of attention.
    """

    target: str
    op_name: str
    functions: tuple[str, ...]
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]
    attributes: str
    backend_config: str
    packing: Packing = ()


Flops = Callable[[CustomCall], int]

_CONTRACTED = re.compile(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]')
_SCORES = re.compile(r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]')
_MASK = re.compile(r'"mask_type":\s*"(\w+)"')
_SLIDING = re.compile(r'"sliding_window_length":\s*"?(\d+)')
_ESTIMATE = re.compile(r'"flops":\s*"?(\d+)')
_BLOCKS_128 = (128, 128)


def custom_call_flops(call: CustomCall) -> int | None:
    """Return the FLOPs of the matrix products of one call, two for each multiply and add; None where it is unknown.

    Attention counts the scores of the blocks that its kernel visits (`hetjax.models.kernels.attention_scores`): with a
    causal mask those up to the diagonal, with segments those of the assumed ones, else all. cuDNN says itself that it
    is causal, and its blocks are taken to be 128 x 128; of other kernels named scopes say it. Grouped products count
    all rows that they are given.
    """
    for pattern, flops in _TARGETS:
        if pattern.match(call.target):
            return flops(call)
    if _KERNEL_TARGETS.match(call.target):
        # A kernel's own name says more than the scopes that it is in, and these more than who called it.
        *scopes, own, _ = ["", "", *call.op_name.split("/")]
        for name in (own, "/".join(scopes), *call.functions):
            for pattern, flops in KERNELS:
                if pattern.search(name):
                    return flops(call)
        estimated = _ESTIMATE.search(call.backend_config)
        return int(estimated[1]) if estimated else None
    return None


def _gemm(call: CustomCall) -> int:
    contracted = _numbers(_CONTRACTED, call)
    return 2 * call.results[0].size * math.prod(call.operands[0].dims[dim] for dim in contracted)


def _convolution(call: CustomCall) -> int:
    """The dims are those of the forward convolution also where a gradient is computed."""
    if call.target.endswith("BackwardInput"):
        result, kernel, inputs = call.operands[0], call.operands[1], call.results[0]
    elif call.target.endswith("BackwardFilter"):
        inputs, result, kernel = call.operands[0], call.operands[1], call.results[0]
    else:
        inputs, kernel, result = call.operands[0], call.operands[1], call.results[0]
    return convolution_flops(call.attributes, inputs, kernel, result)


def _cudnn_attention(call: CustomCall) -> int:
    """Forward two products; backward the scores again, and two products for the gradient of each (Dao et al. 2022)."""
    batch, heads, queries, keys = _numbers(_SCORES, call)
    mask, window = _MASK.search(call.backend_config), _SLIDING.search(call.backend_config)
    causal = bool(mask and "CAUSAL" in mask[1])
    scores = score_count(Seen(causal, packed=False), queries, keys, blocks=_BLOCKS_128)
    if causal and window and 0 < int(window[1]) < keys:
        scores = min(scores, queries * int(window[1]))
    width, value_width = call.operands[0].dims[-1], call.operands[2].dims[-1]
    products = 3 * width + 2 * value_width if "Backward" in call.target else width + value_width
    return 2 * batch * heads * scores * products


def _attention(
    products: int, padded: Callable[[int], int], blocks: Callable[[int], tuple[int, ...]], *, skips: bool = True
) -> Flops:
    """Attention by a Triton kernel: the first two arrays of four dims are queries [B, S, H, K] and keys [B, T, ., K].

    Such a kernel works on heads of a `padded` width in `blocks` of queries and keys, and `skips` those between which no
    segment is shared, or visits them all.
    """

    def flops(call: CustomCall) -> int:
        query, key = [shape for shape in call.operands if len(shape.dims) >= 4][:2]
        *batch, queries, heads, width = query.dims
        seen = seen_in(call.op_name)
        seen = seen if skips else seen._replace(packed=False)
        scores = score_count(seen, queries, key.dims[-3], call.packing, blocks(width)[:2])
        return products * 2 * math.prod(batch) * heads * scores * padded(width)

    return flops


def _multiple_of_16(width: int) -> int:
    return -(-width // 16) * 16


def _power_of_two(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())


def _ragged_dot(call: CustomCall) -> int:
    """Rows [M, K] by the matrix [K, N] of each row's expert."""
    return 2 * _matrices(call)[0].size * call.results[0].dims[-1]


def _transposed_ragged_dot(call: CustomCall) -> int:
    """Rows [M, K] and [M, N] to a matrix [K, N] for each expert."""
    left, right = _matrices(call)[:2]
    return 2 * left.size * right.dims[-1]


def _matrices(call: CustomCall) -> list[Shape]:
    """The operands that are multiplied; sizes and places of groups have one dim."""
    return [shape for shape in call.operands if len(shape.dims) > 1]


def _none(call: CustomCall) -> int:
    return 0


def _numbers(pattern: re.Pattern, call: CustomCall) -> list[int]:
    found = pattern.search(call.backend_config)
    if found is None:
        raise ValueError(f"{call.target} does not say {pattern.pattern}: {call.backend_config[:300]}")
    return [int(number) for number in re.findall(r"\d+", found[1])]


_TARGETS: tuple[tuple[re.Pattern, Flops], ...] = (
    (re.compile(r"__cublas\$gemm$|__cublas\$lt\$matmul(\$f8|\$mx)?$"), _gemm),
    (re.compile(r"__cudnn\$conv"), _convolution),
    (re.compile(r"__cudnn\$fmha"), _cudnn_attention),
    # Memory, sorting, random bits, and notes to the compiler.
    (
        re.compile(
            r"Sharding$|SPMD|AllocateBuffer$|MoveTo(Host|Device)$|annotate_device_placement$|LayoutConstraint$|Pin$|Unpin$"
            r"|CreateBuffer$|TopK$|PartialReduce$|AssumeGatherIndicesInBound$|__cub\$|cu_threefry2x32|__gpu\$TopK$"
            r"|xla(_ffi|_python)?\w*callback|xla_ffi_\w*partitioned\w*callback"
        ),
        _none,
    ),
)

_KERNEL_TARGETS = re.compile(r"__gpu\$xla\.gpu\.triton$|triton_kernel_call$|mosaic_gpu|tpu_custom_call$")

KERNELS: tuple[tuple[re.Pattern, Flops], ...] = (
    # hetjax.models.kernels.triton_attention: both gradients compute the scores, and the gradient of the weights.
    (re.compile(r"attention_forward"), _attention(2, _multiple_of_16, forward_blocks)),
    (re.compile(r"attention_query_gradient"), _attention(3, _multiple_of_16, backward_blocks)),
    (re.compile(r"attention_key_gradient"), _attention(4, _multiple_of_16, backward_blocks)),
    # jax.experimental.pallas.ops.gpu.attention: its backward computes the scores once for queries and once for keys.
    (re.compile(r"mha_preprocess_backward"), _none),
    (re.compile(r"mha_backward"), _attention(7, _power_of_two, lambda width: _BLOCKS_128, skips=False)),
    (re.compile(r"mha_forward"), _attention(2, _power_of_two, lambda width: _BLOCKS_128, skips=False)),
    # jax.experimental.pallas.ops.gpu.{ragged_dot_mgpu, transposed_ragged_dot_mgpu}
    (re.compile(r"transposed_ragged_dot"), _transposed_ragged_dot),
    (re.compile(r"ragged_dot"), _ragged_dot),
)
"""Kernels written in Pallas, by a part of their name: what multiplies, the first that matches."""
