import numpy as np
import pytest

from hetjax.data.chat import best_fit_rows
from hetjax.data.rows.packing import spread_rows


def rows_of(lengths, capacity, **options):
    return best_fit_rows(np.asarray(lengths)[:, None], [capacity], **{"rows": 99, "most": 99, **options})


def test_a_small_case_by_hand():
    # The oldest, 7, takes 3; then 2 takes the longest that fits, 6, and its own like, 2; then 4 and 4.
    assert rows_of([7, 2, 3, 6, 4, 2, 4], 10) == [[0, 2], [1, 3, 5], [4, 6]]
    assert rows_of([7, 2, 3, 6, 4, 2, 4], 10, rows=2) == [[0, 2], [1, 3, 5]]
    assert rows_of([7, 2, 3, 6, 4, 2, 4], 10, most=2) == [[0, 2], [1, 3], [4, 6], [5]]
    assert rows_of([7, 2, 3], 10, most=1) == [[0], [1], [2]]


def test_rows_begin_with_the_highest_rank_and_are_filled_up_with_lower_ones():
    rows = rows_of([2, 5, 3, 1, 4], 8, ranks=np.array([0, 1, 2, 1, 0]))
    # The rank 2 takes of rank 1 before the longer sample of rank 0; the last row has rank 0 alone.
    assert rows == [[1, 2], [0, 3, 4]]
    assert rows_of([2, 5, 3, 1, 4], 8, ranks=np.array([0, 1, 2, 1, 0]), rows=1) == [[1, 2]]


@pytest.mark.parametrize("seed", range(5))
def test_every_sample_is_in_one_row_and_rows_hold_what_they_can(seed):
    rng = np.random.default_rng(seed)
    needs = np.stack([rng.integers(1, 100, 60), rng.integers(0, 3, 60)], axis=1)
    rows = best_fit_rows(needs, [100, 6], rows=99, most=5)
    assert sorted(sample for row in rows for sample in row) == list(range(60))
    assert all(np.all(needs[row].sum(axis=0) <= [100, 6]) and len(row) <= 5 and row == sorted(row) for row in rows)
    firsts = [row[0] for row in rows]
    assert firsts == sorted(firsts), "the oldest that waits begins the next row"


@pytest.mark.parametrize(("capacity", "median", "sigma"), [(4096, 400, 1.0), (4096, 800, 0.8), (2048, 300, 1.0)])
def test_rows_from_a_window_of_log_normal_lengths_leave_little_padding(capacity, median, sigma):
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(median), sigma, 12_000)).astype(int).clip(8, capacity)
    window, begin, filled = list(lengths[:128]), 128, []
    while begin < len(lengths):
        (row,) = rows_of(window, capacity, rows=1)
        filled.append(sum(window[sample] for sample in row))
        window = [length for sample, length in enumerate(window) if sample not in row]
        window += lengths[begin : begin + len(row)].tolist()
        begin += len(row)
    assert 1 - np.mean(filled) / capacity <= 0.01
    assert len(filled) > 500


def test_too_few_rows_are_halved_as_far_as_there_are_samples():
    assert sorted(spread_rows([[0, 1, 2], [3]], [1, 2, 3, 4], 3)) == [[0], [1, 2], [3]]
    assert sorted(spread_rows([[0, 1, 2], [3]], [1, 2, 3, 4], 9)) == [[0], [1], [2], [3]]
    assert spread_rows([[0], [1]], [1, 1], 1) == [[0], [1]]
