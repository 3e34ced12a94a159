"""Which of the samples that wait make the next batch."""

from types import SimpleNamespace

import numpy as np
import pytest

from hetjax.data.rows.sample import RowUse
from hetjax.data.waiting import Waiting


def use(tokens, patches=0):
    return RowUse(tokens=tokens, before_pruning=tokens, media={"image_rows": patches})


def read_through(uses, shapes, **settings):
    """(rank, rows of positions) of each batch, whatever is left, and the most samples that waited."""
    waiting, batches, most = Waiting(shapes, **{"most": 1, "window": 0, **settings}), [], 0
    for position, own in enumerate(uses):
        waiting.add(position, SimpleNamespace(use=own, position=position))
        most = max(most, len(waiting.samples))
        while (taken := waiting.take(ended=False)) is not None:
            batches.append(taken)
    while (taken := waiting.take(ended=True)) is not None:
        batches.append(taken)
    found = [(taken.rank, [[sample.position for sample in row] for row in taken.rows]) for taken in batches]
    assert [taken.oldest for taken in batches] == [min(map(min, rows)) for _, rows in found]
    return found, list(waiting.samples), most


def test_without_packing_a_batch_has_samples_of_one_shape_and_none_is_lost():
    lengths = [3, 9, 4, 2, 8, 10, 1, 7]
    batches, left, _ = read_through([use(n) for n in lengths], [use(5), use(10)], rows=2)
    assert batches == [(0, [[0], [2]]), (1, [[1], [4]]), (0, [[3], [6]]), (1, [[5], [7]])]
    assert left == []
    # At the end short ones fill up a batch of long rows.
    batches, left, _ = read_through([use(n) for n in (3, 9, 4, 2, 8, 10, 1)], [use(5), use(10)], rows=2)
    assert batches == [(0, [[0], [2]]), (1, [[1], [4]]), (0, [[3], [6]])] and left == [5]
    batches, left, _ = read_through([use(n) for n in (3, 9, 4, 2, 8, 10)], [use(5), use(10)], rows=2)
    assert batches == [(0, [[0], [2]]), (1, [[1], [4]]), (1, [[5], [3]])] and left == []


@pytest.mark.parametrize("shapes", [[(2048, 256)], [(2048, 16), (2048, 256)], [(2048, 16), (2048, 128), (2048, 256)]])
def test_packed_rows_of_a_log_normal_mix_have_at_most_three_percent_padding(shapes):
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(250), 1.0, 4000).astype(int).clip(8, 2048)
    patches = [int(rng.integers(1, 12)) * 4 if rng.random() < 0.4 and length > 100 else 0 for length in lengths]
    uses = [use(int(length), min(rows, length // 8)) for length, rows in zip(lengths, patches, strict=True)]
    settings = {"rows": 8, "most": 64, "window": 128}
    batches, left, most = read_through(uses, [use(*shape) for shape in shapes], **settings)
    used = [position for _, rows in batches for row in rows for position in row]
    assert sorted([*used, *left]) == list(range(4000)) and len(left) < 8
    filled = [sum(uses[position].tokens for position in row) for _, rows in batches[:-3] for row in rows]
    assert 1 - np.mean(filled) / 2048 <= 0.03
    assert most < 128 + 64 * 8 * len(shapes)
    for rank, rows in batches:
        for row in rows:
            total = RowUse.total((uses[position] for position in row), like=uses[0])
            assert total.tokens <= 2048 and total.media["image_rows"] <= shapes[rank][1]
    assert {rank for rank, _ in batches} == set(range(len(shapes)))


def test_rows_that_the_number_of_samples_limits_are_due_as_soon_as_they_are_full():
    batches, left, most = read_through([use(1)] * 21, [use(1000)], rows=2, most=4, window=3)
    assert [len(row) for _, rows in batches for row in rows] == [4, 4, 4, 4, 4, 1] and left == []
    assert most == 11


def test_a_copy_waits_apart():
    waiting = Waiting([use(10)], rows=2, most=1, window=0)
    waiting.add(0, SimpleNamespace(use=use(3)))
    other = waiting.copy()
    other.add(1, SimpleNamespace(use=use(4)))
    assert list(waiting.samples) == [0] and waiting.take(ended=False) is None
    assert len(other.take(ended=False).rows) == 2 and not other.samples
