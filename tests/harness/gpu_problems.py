"""Problems that kernels for GPUs are compared with plain operations on: bfloat16 against float32, values and gradients.

Larger and more kinds than those that a run tries before its first step (`hetjax.models.kernels.checks`).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hetjax.models.kernels.attention import attend
from hetjax.models.kernels.attention_mask import Visible, causal
from hetjax.models.kernels.checks import Problem
from hetjax.models.kernels.flash_attention import TileKernel, projection_of
from hetjax.models.kernels.grouped_experts import ExpertKernels, ExpertSlots, grouped_experts, grouped_experts_backward
from hetjax.models.kernels.grouped_products import GroupedProducts, choose_method
from hetjax.models.parallel.layout_in_force import layout_in_force
from hetjax.models.parallel.sharded_attention import sharded_attention, tile_kernel
from hetjax.models.parallel.zigzag_order import causal_order

# Of the largest number: the weights of scores are rounded to 8 bits.
TOLERANCE = 0.02


def _arrays(batch: int, queries: int, keys: int, heads: int, groups: int, width: int):
    """Query, key, value, and a gradient of the output."""
    random = np.random.default_rng(0)
    sizes = ((queries, heads), (keys, groups), (keys, groups), (queries, heads))
    return [random.normal(size=(batch, length, count, width)).astype(np.float32) for length, count in sizes]


def _segments(batch: int, length: int, count: int) -> np.ndarray:
    return np.sort(np.random.default_rng(1).integers(0, count, (batch, length)), axis=1).astype(np.int32)


def _values_and_gradients(run: Callable, dtype, query, key, value, gradient, *rest):
    query, key, value, gradient = (x.astype(jnp.bfloat16).astype(dtype) for x in (query, key, value, gradient))
    output, vjp = jax.vjp(lambda *qkv: run(*qkv, *rest), query, key, value)
    return output, vjp(gradient)


def _problem(device: jax.Device, kernel: Callable, portable: Callable, *arguments: np.ndarray) -> Problem:
    def on_device(*given):
        with layout_in_force(lambda x, dims: x, device=device):
            return kernel(*given)

    return Problem(on_device, portable, arguments, TOLERANCE)


def attention(
    device: jax.Device, *, length: int, width: int, heads: int = 8, groups: int = 8, order=False, documents: int = 0
) -> Problem:
    """Attention as layers ask for it: causal with `order`, packed with `documents`."""
    ids = (_segments(2, length, documents),) if documents else ()
    last = causal(length) if order else None

    def kernel(query, key, value, segments=None):
        return sharded_attention(query, key, value, order=causal_order(length) if order else None, segments=segments)

    def portable(query, key, value, segments=None):
        return attend(query, key, value, last, segments)

    runs = [partial(_values_and_gradients, *each) for each in ((kernel, jnp.bfloat16), (portable, jnp.float32))]
    return _problem(device, *runs, *_arrays(2, length, length, heads, groups, width), *ids)


def cached_attention(device: jax.Device, *, queries: int, slots: int, width: int) -> Problem:
    """A prompt, or a token of a decode step, against the slots of a cache; the values alone."""
    query, key, value, _ = _arrays(4, queries, slots, 8, 2, width)
    first = np.random.default_rng(2).integers(0, slots - queries, (4, 1))
    positions = (first + np.arange(queries)).astype(np.int32)

    def run(attention: Callable, dtype, query, key, value, positions):
        query, key, value = (x.astype(jnp.bfloat16).astype(dtype) for x in (query, key, value))
        return attention(query, key, value, positions=positions)

    runs = [partial(run, *each) for each in ((sharded_attention, jnp.bfloat16), (attend, jnp.float32))]
    return _problem(device, *runs, query, key, value, positions)


def attention_by_tiles(device: jax.Device, *, length: int, width: int) -> Problem:
    """Causal attention over packed documents in two tiles of keys, each merged with what came before, as in a ring."""
    half, ids = length // 2, _segments(2, length, 5)

    def kernel(query, key, value, gradient, segments):
        tile: TileKernel = tile_kernel(query.astype(jnp.bfloat16), device)
        query, *of_keys, gradient = (x.astype(jnp.bfloat16) for x in (query, key, value, gradient))
        tiles = [
            (query, *(x[:, part] for x in of_keys), Visible(causal(length) - start, segments, segments[:, part]))
            for start, part in ((0, slice(None, half)), (half, slice(half, None)))
        ]
        running, gradients = None, []
        for each in tiles:
            running = tile.forward(*each, jnp.float32, running)
        projection = projection_of(gradient, running.values)
        for each in tiles:
            gradients.append(tile.backward(*each, running.log_sum, projection, gradient, jnp.float32))
        (of_query, *first), (more, *second) = gradients
        joined = [jnp.concatenate(pair, axis=1) for pair in zip(first, second, strict=True)]
        return running.values, (of_query + more, *joined)

    def portable(query, key, value, segments):
        return attend(query, key, value, causal(length), segments)

    plain = partial(_values_and_gradients, portable, jnp.float32)
    return _problem(device, kernel, plain, *_arrays(2, length, length, 8, 2, width), ids)


def experts(
    device: jax.Device, *, tokens: int, count: int, chosen: int, width: int, hidden: int, skewed: bool = False
) -> Problem:
    """Experts as layers compute them on a device, of random choices, or all of one expert where `skewed`."""
    random = np.random.default_rng(0)
    # `count` is an empty slot.
    alone = np.array([1] + [count] * (chosen - 1))
    choice = np.stack([alone if skewed else random.permutation(count)[:chosen] for _ in range(tokens)]).astype(np.int32)
    shapes = ((count, width, hidden), (count, hidden, width), (tokens, width), (tokens, width))
    arrays = [(random.normal(size=shape) * 0.3).astype(np.float32) for shape in shapes]
    weights = random.uniform(0.2, 1, (tokens, chosen)).astype(np.float32)

    def run(method, dtype, up, down, x, gradient, weights, choice):
        up, down, x, gradient = (each.astype(jnp.bfloat16).astype(dtype) for each in (up, down, x, gradient))
        products = GroupedProducts(method=method, count=count, rows=tokens * chosen)
        given = products, ExpertKernels((up,), down), x, ExpertSlots(choice, weights)
        y, first = grouped_experts(*given, "relu2")
        return y, grouped_experts_backward(*given, first, gradient, "relu2")

    ways = (choose_method(jnp.bfloat16, width, device), jnp.bfloat16), ("blocks", jnp.float32)
    return _problem(device, *(partial(run, *each) for each in ways), *arrays, weights, choice)


PROBLEMS: dict[str, Callable[[jax.Device], Problem]] = {
    "full": partial(attention, length=1024, width=64),
    "full, heads of 72": partial(attention, length=729, width=72),
    "causal": partial(attention, length=2048, width=128, order=True),
    "causal, grouped queries": partial(attention, length=2048, width=128, groups=2, order=True),
    "packed": partial(attention, length=2000, width=64, documents=7),
    "packed, heads of 80": partial(attention, length=1500, width=80, documents=40),
    "causal, packed, grouped queries": partial(attention, length=2000, width=128, groups=2, order=True, documents=7),
    "causal, packed, heads of 256": partial(attention, length=700, width=256, groups=1, order=True, documents=3),
    "tiles of a ring": partial(attention_by_tiles, length=2048, width=128),
    "tiles of a ring, heads of 64": partial(attention_by_tiles, length=1200, width=64),
    "prompt against a cache": partial(cached_attention, queries=300, slots=1000, width=128),
    "token against a cache": partial(cached_attention, queries=1, slots=1000, width=128),
    "experts": partial(experts, tokens=2000, count=16, chosen=4, width=512, hidden=384),
    "experts, narrow": partial(experts, tokens=777, count=8, chosen=2, width=256, hidden=96),
    "experts, all tokens to one": partial(experts, tokens=777, count=8, chosen=2, width=256, hidden=128, skewed=True),
}
"""By name, for a device."""
