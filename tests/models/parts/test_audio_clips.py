import numpy as np
import pytest

from hetjax.models import ModelError
from hetjax.models.parts.audio_clips import (
    CLIP_SAMPLES,
    clip_lengths,
    clip_token_positions,
    split_clips,
    stack_clips,
    tokens_of_clip,
)


def test_half_a_minute_is_375_tokens():
    assert CLIP_SAMPLES == 480_000
    assert tokens_of_clip(CLIP_SAMPLES) == 375


@pytest.mark.parametrize("samples", [0, 159, 160, 161, 1280, 1440, 1600, 479_999, 123_457])
def test_tokens_are_what_three_convolutions_of_stride_2_leave(samples):
    rows = range(samples // 160)
    for _ in range(3):
        rows = rows[::2]
    assert tokens_of_clip(samples) == len(rows)
    assert tokens_of_clip(np.array([samples, 160])).tolist() == [len(rows), 1]


def test_the_rest_of_an_audio_is_its_last_clip():
    assert clip_lengths(2 * CLIP_SAMPLES + 5) == (CLIP_SAMPLES, CLIP_SAMPLES, 5)
    assert clip_lengths(2 * CLIP_SAMPLES) == (CLIP_SAMPLES,) * 2
    assert clip_lengths(0) == ()
    assert sum(map(tokens_of_clip, clip_lengths(2 * CLIP_SAMPLES + 16_000))) == 2 * 375 + 13


@pytest.mark.parametrize("samples", [0, 3, 10, 20, 23])
def test_clips_joined_are_the_audio(samples):
    sound = np.arange(samples, dtype=np.float32)
    clips = split_clips(sound, 10)
    assert [len(clip) for clip in clips] == list(clip_lengths(samples, 10))
    np.testing.assert_array_equal(np.concatenate([*clips, []]), sound)


def test_stacked_clips_are_padded_with_silence():
    waveforms, lengths = stack_clips([np.ones(3), np.ones(5)], count=3, samples=6)
    assert waveforms.dtype == np.float32 and lengths.dtype == np.int32
    assert lengths.tolist() == [3, 5, 0]
    assert waveforms.sum(axis=1).tolist() == [3, 5, 0] and waveforms.shape == (3, 6)
    assert stack_clips([])[0].shape == (0, 0)
    with pytest.raises(ModelError, match="2 clips of up to 5 samples do not fit into 1 clips of 6"):
        stack_clips([np.ones(3), np.ones(5)], count=1, samples=6)


def test_rows_of_tokens_skip_padding():
    rows, clips = clip_token_positions(np.array([1600, 0, 160]), 3200)
    per_clip = tokens_of_clip(3200)
    assert rows.tolist() == [0, 1, 2 * per_clip] and clips.tolist() == [0, 0, 2]


def test_an_audio_of_two_channels_is_refused():
    with pytest.raises(ModelError, match=r"\(2, 9\); give one channel"):
        split_clips(np.ones((2, 9)))
