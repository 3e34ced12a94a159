"""Pruned video tokens and shortened sequences, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hetjax.compilation.hlo import collectives
from hetjax.models.errors import ModelError
from hetjax.models.parts.video_pruning import capacity_for_kept, compact_sequence, keep_count, prune
from tests.harness.models.retained import retained

RATES = (0.0, 0.3, 0.5, 0.7, 0.9)


def loop_retained(video, rate):
    """Indices kept of one video [T, N, D]: the rule, written as it reads."""
    tubelets, tokens, _ = video.shape
    differs = []
    for t in range(tubelets):
        for n in range(tokens):
            if t == 0:
                differs.append(255.0)
                continue
            x, before = video[t, n], video[t - 1, n]
            differs.append(1 - x @ before / (np.linalg.norm(x) * np.linalg.norm(before)))
    wanted = max(tokens, int(tubelets * tokens * (1 - rate)))
    best = sorted(range(len(differs)), key=lambda i: (-differs[i], i))[:wanted]
    return sorted(best)


def packed_rows(rng, sizes, *, prefix=1, rows=40, width=5):
    """(tokens, segments, is_token, videos, places) of videos of sizes (T, N), with a prefix before each tubelet."""
    tokens = rng.normal(size=(rows, width))
    segments, is_token, places, videos, at, segment = np.zeros(rows, np.int32), np.zeros(rows, bool), [], [], 0, 3
    for tubelets, count in sizes:
        here = []
        for _ in range(tubelets):
            segments[at : at + prefix + count] = segment
            is_token[at + prefix : at + prefix + count] = True
            here += range(at + prefix, at + prefix + count)
            at, segment = at + prefix + count, segment + 1
        segment += 5
        places.append(here)
        videos.append(tokens[here].reshape(tubelets, count, width))
    segments[at:] = segment
    return tokens, segments, is_token, videos, places


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("size", [(1, 4), (2, 3), (5, 4), (7, 1)])
def test_retained_equals_a_loop(float64, rate, size):
    videos = np.random.default_rng(1).normal(size=(3, *size, 6))
    got = retained(videos, rate)
    assert got.dtype == np.int32 and got.shape == (3, keep_count(*size, rate))
    np.testing.assert_array_equal(got, [loop_retained(video, rate) for video in videos])


def test_of_equal_differences_the_first_are_kept(float64):
    video = np.ones((4, 3, 2)) * np.array([1.0, 0.0])  # all alike, and 1 - cos is 0 without rounding
    np.testing.assert_array_equal(retained(video, 0.5), [0, 1, 2, 3, 4, 5])


def test_counts():
    assert keep_count(4, 10, 0.7) == 12 and keep_count(2, 10, 0.7) == 10
    assert keep_count(10, 1, 0.7) == int(10 * (1 - 0.7)) and keep_count(0, 10, 0.7) == 0
    assert (
        capacity_for_kept(1000, 0.7) == 300
        and capacity_for_kept(1000, 0.9) == 256
        and capacity_for_kept(100, 0.9) == 100
    )
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(ModelError, match="pruning rate"):
            keep_count(1, 1, rate)


@pytest.mark.parametrize("rate", RATES)
def test_prune_equals_the_rule_for_each_video(float64, rate):
    rng = np.random.default_rng(2)
    made = [
        packed_rows(rng, sizes, prefix=prefix)
        for sizes, prefix in [([(3, 4), (1, 2), (4, 2)], 1), ([(2, 6)], 3), ([], 1), ([(5, 1), (5, 1), (2, 3)], 2)]
    ]
    tokens, segments, is_token = (np.stack([row[i] for row in made]) for i in range(3))
    pruned, kept = jax.jit(prune, static_argnums=(3, 4))(tokens, segments, is_token, rate, 30)
    for row, (_, _, _, videos, places) in enumerate(made):
        want = [at[i] for video, at in zip(videos, places, strict=True) for i in loop_retained(video, rate)]
        assert len(want) == sum(keep_count(*video.shape[:2], rate) for video in videos)
        np.testing.assert_array_equal(kept[row], want + [40] * (30 - len(want)))
        np.testing.assert_array_equal(pruned[row, : len(want)], tokens[row, want])
        assert not np.any(pruned[row, len(want) :])


def test_counts_of_long_videos_are_those_of_the_host():
    """In float32, 0.7 and 0.9 of some lengths fall on the other side of a whole number."""
    for rate, tubelets in ((0.7, 10), (0.7, 30), (0.9, 70), (0.1, 50)):
        tokens = np.random.default_rng(3).normal(size=(1, tubelets, 2)).astype(np.float32)
        segments, is_token = np.arange(tubelets)[None], np.ones((1, tubelets), bool)
        _, kept = jax.jit(prune, static_argnums=(3, 4))(tokens, segments, is_token, rate, tubelets)
        assert int((kept < tubelets).sum()) == keep_count(tubelets, 1, rate)


def test_gradient_reaches_the_kept_tokens_alone(float64):
    tokens, segments, is_token = (x[None] for x in packed_rows(np.random.default_rng(4), [(4, 3)])[:3])
    weights = np.random.default_rng(5).normal(size=(1, 8, 5))
    _, kept = jax.jit(prune, static_argnums=(3, 4))(tokens, segments, is_token, 0.5, 8)
    got = jax.jit(jax.grad(lambda tokens: jnp.sum(weights * prune(tokens, segments, is_token, 0.5, 8)[0])))(tokens)
    want = np.zeros_like(tokens)
    for place, row in enumerate(kept[0][:6]):
        want[0, row] += weights[0, place]
    np.testing.assert_array_equal(got, want)


def loop_compact(values, positions, kept, length, fill):
    gone = {p for n, p in enumerate(positions) if n not in kept}
    left = [value for row, value in enumerate(values) if row not in gone]
    return (left + [fill] * length)[:length]


def test_compacted_rows_equal_a_loop():
    rng = np.random.default_rng(6)
    rows, count, room = 20, 8, 5
    positions = np.array([[2, 3, 4, 20, 9, 10, 11, 25], [20] * 8, [0, 1, 2, 3, 4, 5, 6, 7]])
    kept = np.array([[0, 2, 4, 8, 8], [8, 8, 8, 8, 9], [0, 2, 3, 5, 7]])
    audio = np.array([[12, 20, 6], [0, 1, -1], [8, 9, 30]])
    lengths = np.array([13, 6, 11])
    tokens, weights = rng.integers(1, 99, size=(3, rows)), rng.normal(size=(3, rows)).astype(np.float32)
    for row, length in enumerate(lengths):
        tokens[row, length:], weights[row, length:] = 0, 0

    def run(positions, kept, tokens, weights, audio, lengths):
        moved = compact_sequence(positions, kept, rows)
        return moved.take(tokens), moved.take(weights), moved.places, moved.move(audio), moved.shorten(lengths)

    new_tokens, new_weights, places, new_audio, new_lengths = jax.jit(run)(
        positions, kept, tokens, weights, audio, lengths
    )
    length = rows - (count - room)
    assert new_tokens.shape == new_weights.shape == (3, length)
    for row in range(3):
        for new, given in ((new_tokens, tokens), (new_weights, weights)):
            want = loop_compact(given[row], positions[row], kept[row], length, 0)
            np.testing.assert_array_equal(new[row], want)
        old = loop_compact(list(range(rows)), positions[row], kept[row], rows, None)
        find = lambda p, old=old: old.index(p) if 0 <= p < rows else length  # noqa: E731
        want = [find(positions[row][n]) if n < count else length for n in kept[row]]
        np.testing.assert_array_equal(places[row], want)
        np.testing.assert_array_equal(new_audio[row], [find(p) for p in audio[row]])
        assert new_lengths[row] == sum(1 for p in old[: lengths[row]] if p is not None and p < lengths[row])


def test_separators_stay_and_each_tubelet_has_the_count_it_keeps():
    """The placeholders (9) of two tubelets between their marks (1, 2): what is left says how many each keeps."""
    tokens = np.array([[1, 9, 9, 9, 2, 1, 9, 9, 9, 2, 5, 0, 0]])
    moved = compact_sequence(np.array([[1, 2, 3, 6, 7, 8]]), np.array([[0, 1, 2, 4]]), 13)
    np.testing.assert_array_equal(moved.take(tokens), [[1, 9, 9, 9, 2, 1, 9, 2, 5, 0, 0]])
    np.testing.assert_array_equal(moved.places, [[1, 2, 3, 6]])


def test_more_tokens_than_rows_are_refused():
    with pytest.raises(ModelError, match="is no length"):
        compact_sequence(np.zeros((1, 9), int), np.zeros((1, 2), int), 7)


def test_a_split_batch_equals_one_device_and_nothing_is_sent():
    rng = np.random.default_rng(7)
    made = [packed_rows(rng, sizes) for sizes in ([(3, 4)], [(2, 5), (3, 2)], [(1, 1)], [(6, 4)])]
    tokens, segments, is_token = (np.stack([row[i] for row in made]) for i in range(3))
    positions = np.where(is_token, np.cumsum(is_token, axis=1) + 2, 50).astype(np.int32)
    text = rng.integers(0, 99, size=(4, 50)).astype(np.int32)

    def objective(tokens, segments, is_token, positions, text):
        pruned, kept = prune(tokens, segments, is_token, 0.5, 16)
        moved = compact_sequence(positions, kept, 50)
        return jnp.sum(jnp.sin(pruned), axis=(1, 2)), (moved.take(text), moved.places)

    def run(tokens, *rest):
        out, back, more = jax.vjp(lambda tokens: objective(tokens, *rest), tokens, has_aux=True)
        return out, more, back(jnp.ones_like(out))[0]

    batch = (tokens.astype(np.float32), segments, is_token, positions, text)
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:4]), ("data",)), P("data"))
    program = jax.jit(run, in_shardings=sharding, out_shardings=sharding).lower(*batch).compile()
    assert not collectives(program.as_text())
    split = program(*[jax.device_put(x, sharding) for x in batch])
    for got, want in zip(jax.tree.leaves(split), jax.tree.leaves(jax.jit(run)(*batch)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
