import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.models.parts.conformer.attention import attend_relatively, encode_distances, shift_distances
from tests.harness.models.tiny_models import relative_error


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_shifted_scores_are_those_of_the_distance_to_each_key(tokens):
    scores = np.random.default_rng(0).normal(size=(3, tokens, 2 * tokens - 1))
    got = np.asarray(shift_distances(jnp.asarray(scores)))
    for query in range(tokens):
        for key in range(tokens):
            np.testing.assert_allclose(got[:, query, key], scores[:, query, tokens - 1 - (query - key)], rtol=1e-6)


def test_distances_run_down_with_sines_and_cosines_in_turns(float64):
    encoded = np.asarray(encode_distances(3, 6, jnp.float64))
    for row, distance in zip(encoded, (2, 1, 0, -1, -2), strict=True):
        for pair in range(3):
            angle = distance / 10000 ** (2 * pair / 6)
            np.testing.assert_allclose(row[2 * pair : 2 * pair + 2], [np.sin(angle), np.cos(angle)], atol=1e-14)


def test_attention_equals_numpy(float64):
    random = np.random.default_rng(1)
    batch, clips, tokens, heads, width = 2, 2, 5, 3, 4
    query, key, value = random.normal(size=(3, batch, clips, tokens, heads, width))
    of_distance = random.normal(size=(2 * tokens - 1, heads, width))
    content_bias, distance_bias = random.normal(size=(2, heads, width))
    counts = np.array([[5, 3], [1, 4]])
    valid = np.arange(tokens) < counts[..., None]
    got = attend_relatively(query, key, value, of_distance, content_bias, distance_bias, jnp.asarray(valid))
    for b, c, h in np.ndindex(batch, clips, heads):
        for i in range(counts[b, c]):
            scores = np.array(
                [
                    (query[b, c, i, h] + content_bias[h]) @ key[b, c, j, h]
                    + (query[b, c, i, h] + distance_bias[h]) @ of_distance[tokens - 1 - i + j, h]
                    for j in range(counts[b, c])
                ]
            )
            weights = np.exp(scores / np.sqrt(width))
            want = weights / weights.sum() @ value[b, c, : counts[b, c], h]
            assert relative_error(got[b, c, i, h], want) < 1e-12
