import itertools

import numpy as np
import pytest

from hetjax.data.rows.shape_choice import choose_shapes


def choose(needs, capacity, most, *, units=None, costs=None, weights=None):
    needs = np.asarray(needs)
    return choose_shapes(
        needs,
        np.ones(len(needs)) if weights is None else np.asarray(weights, float),
        capacity=capacity,
        units=[1] * len(capacity) if units is None else units,
        costs=[1.0] * len(capacity) if costs is None else costs,
        most=most,
    )


def work_of(needs, shapes, weights):
    """Each sample in the cheapest shape that holds it."""
    fits = [[sum(shape) for shape in shapes if np.all(np.asarray(need) <= shape)] for need in needs]
    return sum(weight * min(works) for weight, works in zip(weights, fits, strict=True))


@pytest.mark.parametrize("most", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_of_one_resource_no_other_choice_is_better(seed, most):
    rng = np.random.default_rng(seed)
    needs, weights = rng.integers(1, 15, (24, 1)), rng.integers(1, 5, 24)
    choice = choose(needs, (16,), most, weights=weights)
    every = itertools.chain.from_iterable(itertools.combinations(range(1, 16), n) for n in range(most))
    best = min(work_of(needs, [(size,) for size in (*sizes, 16)], weights) for sizes in every)
    assert choice.work == best == work_of(needs, choice.shapes, weights)
    assert len(choice.shapes) <= most and choice.shapes[-1] == (16,) and choice.shapes == sorted(choice.shapes)


def test_more_shapes_are_never_worse_and_each_sample_fits_into_one():
    rng = np.random.default_rng(0)
    needs = np.stack([rng.lognormal(5, 1, 500).astype(int).clip(1, 2000), rng.integers(0, 2, 500) * 96], axis=1)
    found = [choose(needs, (2000, 128), most, units=(125, 8), costs=(1.0, 20.0)) for most in (1, 2, 4, 8)]
    assert [choice.work for choice in found] == sorted((choice.work for choice in found), reverse=True)
    assert found[0].shapes == [(2000, 128)] and found[0].work == pytest.approx(500 * (2000 + 20 * 128))
    assert found[2].work < found[0].work / 2
    for choice in found:
        assert all(length % 125 == 0 and rows % 8 == 0 and rows > 0 for length, rows in choice.shapes)
        assert np.all((needs[:, None] <= np.asarray(choice.shapes)).all(axis=2).any(axis=1))


def test_text_alone_gets_a_shape_without_room_for_images():
    needs = [[100, 0]] * 50 + [[100, 64]] * 50
    choice = choose(needs, (100, 64), 2, units=(10, 4), costs=(1.0, 5.0))
    assert choice.shapes == [(100, 4), (100, 64)]
