import numpy as np
import pytest

from hetjax.data.chat import pack
from hetjax.errors import DataError


def test_a_small_case_by_hand():
    # 7 into the first row, 6 into the second, 4 into the second (10), 3 into the first (10), 2 opens a third.
    assert pack([[7], [2], [3], [6], [4]], [10], bins=2) == [[0, 2], [3, 4], [1]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spare", [0, 3])
def test_every_sample_is_in_one_row_and_rows_hold_what_they_can(seed, spare):
    rng = np.random.default_rng(seed)
    needs = np.stack([rng.integers(1, 100, 60), rng.integers(0, 3, 60)], axis=1)
    least = -(-needs[:, 0].sum() // 100)
    rows = pack(needs, [100, 6], bins=least + spare if spare else None)
    assert sorted(sample for row in rows for sample in row) == list(range(60))
    assert all(np.all(needs[row].sum(axis=0) <= [100, 6]) for row in rows)
    assert all(row == sorted(row) for row in rows)
    assert least <= len(rows) <= 1.5 * least + spare


def test_spare_rows_make_rows_even():
    needs = [[n] for n in (50, 40, 30, 20, 10, 10, 10, 10)]
    assert [sum(needs[i][0] for i in row) for row in pack(needs, [100], bins=3)] == [60, 60, 60]


def test_a_sample_that_fits_no_row_is_named():
    with pytest.raises(DataError, match=r"sample 1 takes \[5, 9\], but the capacity of a row is \[10, 4\]"):
        pack([[1, 1], [5, 9]], [10, 4])
    assert pack([], [10]) == []
