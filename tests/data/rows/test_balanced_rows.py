"""Media spread over the rows of an encoder: every token comes back to the position that it has without."""

import dataclasses

import numpy as np
import pytest

from hetjax.data.chat import RowCapacity, make_arrays, row_routes
from hetjax.data.modalities import Audio
from hetjax.errors import ConfigError
from hetjax.stages.routes import ROUTES
from tests.harness.parity import balanced
from tests.harness.parity.omni import components

SHARDS = np.arange(8).reshape(2, 2, 2)  # two microbatches of two shards with two rows
NAMES = {"vision": "image", "audio": "audio"}


def encoded(arrays: dict) -> dict[str, np.ndarray]:
    """A number for every token that an encoder makes, which its content decides."""
    rows = components()["vision"].merge ** 2
    patches = np.concatenate([arrays["vision"][port].sum(-1) for port in ("patches", "video_patches")], axis=1)
    waveforms = arrays["audio"]["waveforms"].sum(-1)
    tokens = arrays["llm"]["audio_positions"].shape[1] // waveforms.shape[1]
    return {
        "vision": patches.reshape(len(patches), -1, rows).sum(-1),
        "audio": (waveforms[..., None] + np.arange(tokens)).reshape(len(waveforms), -1),
    }


def in_sequence(arrays: dict, tokens: np.ndarray, name: str) -> np.ndarray:
    """The tokens at their positions; what stands for nothing is left out."""
    rows, length = arrays["llm"]["tokens"].shape
    sequence = np.zeros((rows, length + 1))
    np.put_along_axis(sequence, arrays["llm"][f"{name}_positions"], tokens, axis=1)
    return sequence[:, :length]


@pytest.fixture(scope="module")
def rows() -> list:
    samples = balanced.make_samples(0.0)
    return [[sample] for sample in samples[:8]]


def test_tokens_of_moved_media_stand_where_they_did(rows):
    processor = balanced.processor(0.0)
    spread = processor.balancing(dict.fromkeys(NAMES, SHARDS))
    plain, moved = (make_arrays(each, rows, training=True) for each in (processor, spread))
    there, here = encoded(plain), encoded(moved)
    for module, name in NAMES.items():
        routes = moved[ROUTES][f"{module}.tokens"]
        taken = np.where(routes >= 0, here[module].ravel()[routes], 0)
        expected = in_sequence(plain, there[module], name)
        np.testing.assert_allclose(in_sequence(moved, taken, name), expected, rtol=1e-5)
        used = routes[routes >= 0]
        assert len(np.unique(used)) == len(used) == np.count_nonzero(plain["llm"][f"{name}_positions"] < 384)
        # No medium leaves the microbatch of its encoder.
        own, other = np.nonzero(routes >= 0)[0], used // routes.shape[1]
        assert (own // 4 == other // 4).all()
    assert (moved[ROUTES]["vision.tokens"] >= 0).any()
    metrics = moved["metrics"]
    assert metrics["vision/imbalance"] < metrics["vision/imbalance_in_order"]
    shapes = {port: (8, *spec.shape) for port, spec in row_routes(processor.capacity).items()}
    assert shapes == {port: routes.shape for port, routes in moved[ROUTES].items()}


def test_a_modality_that_does_not_say_what_its_media_take_is_refused(monkeypatch):
    class Silent(Audio):
        amounts = Audio.__mro__[1].amounts

    processor = balanced.processor(0.0)
    capacity = processor.capacity
    fitted = {**capacity.modalities, "audio": Silent(processor.config, components()["audio"])}
    monkeypatch.setattr(processor, "capacity", dataclasses.replace(capacity, modalities=fitted))
    assert isinstance(processor.capacity, RowCapacity)
    with pytest.raises(ConfigError, match="modality 'audio' does not say what an item takes"):
        processor.balancing(dict.fromkeys(NAMES, SHARDS))
