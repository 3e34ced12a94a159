"""Scores that are needed and visited, counted before there is data, against masks and the bounds that kernels take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.models.kernels.attention_mask import Visible, block_overlaps, bounds, causal, seen
from hetjax.models.kernels.attention_scores import Packed, Seen, attention_scopes, score_count, seen_in

ROWS = {
    "one segment": (Packed(96, 96),),
    "segments that blocks divide": (Packed(128, 32),),
    "segments of any length": (Packed(100, 37),),
    "images and tubelets": (Packed(90, 40), Packed(60, 12)),
}


def ids_of(packing) -> np.ndarray:
    """An id a position, as the data pipeline would number such segments."""
    ids, count = [], 0
    for positions, longest in packing:
        own = np.arange(positions) // longest
        ids.append(own + count)
        count += own[-1] + 1
    return np.concatenate(ids).astype(np.int32)[None]


@pytest.mark.parametrize("limited", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("packing", ROWS.values(), ids=ROWS)
def test_a_count_is_that_of_a_mask_and_of_the_blocks_between_the_bounds_of_a_kernel(packing, limited):
    ids = jnp.asarray(ids_of(packing))
    length, what = ids.shape[1], Seen(causal=limited, packed=True)
    last = causal(length) if limited else None
    mask = seen(last, ids, ids, jnp.arange(length))
    assert score_count(what, length, length, packing) == mask.sum()
    for blocks in ((16, 8), (8, 16), (64, 32)):
        first, stop = bounds(block_overlaps(Visible(last, ids, ids), length, length, *blocks))
        visited = int((stop - first).sum()) * blocks[0] * blocks[1]
        assert score_count(what, length, length, packing, blocks) == visited


def test_a_part_of_a_row_counts_by_itself_and_a_share_of_a_row_as_the_average_of_its_tiles():
    row, what = ROWS["images and tubelets"], Seen(causal=False, packed=True)
    assert score_count(what, 60, 60, row) == 5 * 12 * 12
    whole = score_count(what, 150, 150, row)
    assert score_count(what, 75, 75, row) == round(whole / 4)


def test_without_scopes_or_between_different_positions_all_counts():
    row = ROWS["segments of any length"]
    assert score_count(Seen(False, False), 100, 100, row, (64, 64)) == 128 * 128
    assert score_count(Seen(True, True), 1, 100, row) == 100
    # Nothing is known of these segments.
    assert score_count(Seen(False, True), 70, 70) == 70 * 70


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_scopes_come_back_from_a_trace(limited, packed):
    def run(x):
        with attention_scopes(causal=limited, packed=packed):
            return jnp.sin(x)

    jaxpr = jax.make_jaxpr(jax.grad(run))(1.0)
    stacks = {str(equation.source_info.name_stack) for equation in jaxpr.eqns}
    assert Seen(limited, packed) in {seen_in(stack) for stack in stacks}
    assert seen_in("noncausal/unpacked/attention") == Seen(False, False)
