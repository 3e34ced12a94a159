"""The log-mel front end beside that of transformers."""

import jax.numpy as jnp
import numpy as np
import pytest

from hetjax.models.parts.mel import log_mel, mel_filters
from tests.harness.parity.oracle import relative_error

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.live


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(scale=0.1, size=samples).astype(np.float32)


def tone(samples):
    """Two tones that come and go over a floor of noise, as a recording has one."""
    t = np.arange(samples) / 16000
    loud = 0.5 * np.sin(2 * np.pi * 440 * t) * (1 + np.sin(2 * np.pi * 3 * t)) + 0.1 * np.sin(2 * np.pi * 3000 * t)
    return (loud + 1e-3 * noise(samples, 1)).astype(np.float32)


CASES = {
    "noise": [noise(16000)],
    "tone": [tone(16000)],
    "odd lengths": [noise(16001), tone(8159), noise(3201, 2)],
    "one frame short of two hops": [noise(479)],
    "several lengths": [tone(24000), noise(16000), noise(799, 3), tone(320)],
}


def padded(sounds, dtype):
    """(waveforms, lengths), with what must not be read behind each clip."""
    lengths = np.array([len(sound) for sound in sounds])
    waveforms = np.full((len(sounds), lengths.max()), 7, dtype)
    for row, sound in zip(waveforms, sounds, strict=True):
        row[: len(sound)] = sound
    return jnp.asarray(waveforms), jnp.asarray(lengths)


def exact(sound, bins):
    """The same features of one clip by torch, in float64 all through, which the extractor never is."""
    x = torch.tensor(sound, dtype=torch.float64)
    x = torch.cat([x[:1], x[1:] - 0.97 * x[:-1]])
    window = torch.hann_window(400, periodic=False, dtype=torch.float64)
    spectrum = torch.stft(x, 512, 160, 400, window, return_complex=True, pad_mode="constant")
    filters = torch.tensor(theirs_filters(bins).T.copy())
    mel = torch.log(filters @ spectrum.abs() ** 2 + 2**-24).T[: len(sound) // 160]
    return ((mel - mel.mean(0)) / (mel.std(0) + 1e-5)).numpy()


def theirs_filters(bins):
    return transformers.audio_utils.mel_filter_bank(
        num_frequency_bins=257,
        num_mel_filters=bins,
        min_frequency=0.0,
        max_frequency=8000.0,
        sampling_rate=16000,
        norm="slaney",
        mel_scale="slaney",
    )


@pytest.mark.parametrize("sounds", CASES.values(), ids=CASES)
@pytest.mark.parametrize("bins", [128, 80])
def test_features_equal_transformers(sounds, bins):
    """As close to exact ones as theirs are: the logarithm of a weak bin beside strong ones magnifies any rounding."""
    extractor = transformers.ParakeetFeatureExtractor(feature_size=bins)
    theirs = extractor(sounds, sampling_rate=16000, return_tensors="pt")
    want = theirs["input_features"].numpy()
    waveforms, lengths = padded(sounds, np.float32)
    got = np.asarray(log_mel(waveforms, lengths, bins))
    # Theirs has one frame more, which no clip fills.
    assert got.shape[1] == want.shape[1] - 1 and not want[:, -1].any()
    np.testing.assert_array_equal(theirs["attention_mask"].sum(1).numpy(), lengths // 160)
    for own, given, sound in zip(got, want, sounds, strict=True):
        frames = len(sound) // 160
        truth = exact(sound, bins)
        of_theirs = relative_error(given[:frames], truth)
        assert relative_error(own[:frames], truth) < 2e-5 + of_theirs
        assert relative_error(own[:frames], given[:frames]) < 1e-4
        assert not own[frames:].any() and not given[frames:].any()


@pytest.mark.parametrize("sounds", CASES.values(), ids=CASES)
def test_features_equal_torch_in_float64(float64, sounds):
    waveforms, lengths = padded(sounds, np.float64)
    got = np.asarray(log_mel(waveforms, lengths, 128))
    for own, sound in zip(got, sounds, strict=True):
        assert relative_error(own[: len(sound) // 160], exact(sound, 128)) < 1e-9


@pytest.mark.parametrize("bins", [128, 80, 16])
def test_filters_equal_transformers(bins):
    assert relative_error(mel_filters(bins), theirs_filters(bins).T) < 1e-12
