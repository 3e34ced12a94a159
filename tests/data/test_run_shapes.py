"""Shapes of rows from what samples take, and the shape that a sample belongs to."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from hetjax.data.chat import ProcessorConfig, RowCapacity, RowUse
from hetjax.data.run_shapes import rank_of, run_shapes
from hetjax.models.dynamic_resolution import DynamicResolution
from hetjax.models.patch_rows import PatchRows

ROWS = dict(patch_size=4, merge=2, prefix_tokens=0)
VISION = SimpleNamespace(
    tubelet=2, image_rows=PatchRows(**ROWS), video_rows=PatchRows(**ROWS, frames=2), video_pruning_rate=0.5
)
CONFIG = ProcessorConfig(
    image_rows=96, video_rows=64, clips=3, clip_seconds=0.3, resolution=DynamicResolution(patch_size=4, merge=2)
)
WORK = {"llm": 10.0, "vision": 5.0, "audio": 1.0}


@pytest.fixture
def capacity():
    return RowCapacity.of(CONFIG, 640, {"vision": VISION, "audio": object()})


def uses_of(capacity, count=400):
    """Short text, long text, text with images of any number, and a few of everything."""
    rng = np.random.default_rng(0)
    nothing = dict.fromkeys(capacity.most.media, 0)
    found = []
    for i in range(count):
        tokens = int(rng.integers(20, 90) if i % 2 else rng.integers(200, 640))
        media = {"image_rows": int(rng.integers(1, 20)) * 4} if i % 3 == 0 else {}
        media |= {"clips": 3, "video_rows": 64} if i % 40 == 0 else {}
        found.append(RowUse(tokens=tokens, before_pruning=tokens, media=nothing | media))
    return found


@pytest.mark.parametrize("packed", [False, True])
def test_shapes_end_with_the_capacity_and_what_modules_take_divides_them(capacity, packed):
    uses = uses_of(capacity)
    shapes = run_shapes(uses, capacity, most=4, packed=packed, work=WORK, splits={"llm": 2, "vision": 4})
    assert 2 <= len(shapes) <= 4 and shapes[-1].most == capacity.most
    for shape in shapes:
        amounts = {name: amount for (_, name), amount in shape.amounts.items()}
        assert set(amounts) == {"tokens", "image_rows", "video_rows", "clips"} and min(amounts.values()) > 0
        # 640 = 5 * 128 positions; patches in fours, and in eights since devices split them in four and zigzag.
        assert amounts["tokens"] % 128 == 0 and amounts["image_rows"] % 8 == 0 and amounts["video_rows"] % 8 == 0
        assert shape.encoders.keys() == capacity.encoders.keys(), "every encoder keeps its inputs"
    lengths = {shape.most.tokens for shape in shapes}
    assert lengths == {640} if packed else len(lengths) > 1
    ranks = [rank_of(use, [shape.most for shape in shapes], packed=packed) for use in uses]
    assert set(ranks) == set(range(len(shapes)))
    for use, rank in zip(uses, ranks, strict=True):
        assert all(np.less_equal(use.amounts, shapes[rank].most.amounts))


def test_one_shape_is_the_capacity(capacity):
    (shape,) = run_shapes(uses_of(capacity, 9), capacity, most=1, packed=False, work=WORK, splits={})
    assert shape.most == capacity.most


def test_a_packed_sample_belongs_where_a_row_of_its_like_fits():
    shapes = [RowUse(tokens=100, before_pruning=100, media={"clips": n}) for n in (1, 4, 8)]
    use = RowUse(tokens=50, before_pruning=50, media={"clips": 1})
    assert rank_of(use, shapes, packed=False) == 0
    assert rank_of(use, shapes, packed=True) == 1, "two of them have two clips"
    assert rank_of(RowUse(tokens=5, before_pruning=5, media={"clips": 8}), shapes, packed=True) == 2


def test_what_pruning_leaves_divides_as_that_of_the_capacity_does():
    config = dataclasses.replace(CONFIG, image_rows=0, clips=0, video_rows=2560)
    capacity = RowCapacity.of(config, 640, {"vision": VISION})
    nothing = dict.fromkeys(capacity.most.media, 0)
    uses = [RowUse(tokens=n, before_pruning=n, media=nothing | {"video_rows": 8 * (n // 2)}) for n in range(20, 640)]
    kept = lambda shape: shape.most.media["kept"]  # noqa: E731
    for splits in ({}, {"llm": 4, "vision": 4}):
        shapes = run_shapes(uses, capacity, most=6, packed=False, work=WORK, splits=splits)
        before = [shape.most.before_pruning % math.gcd(capacity.most.before_pruning, 8) for shape in shapes]
        left = [kept(shape) % math.gcd(kept(capacity), 8) for shape in shapes]
        assert (any(before) or any(left)) is not bool(splits)
