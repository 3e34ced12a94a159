"""From messages to arrays: what stands where."""

import numpy as np
import pytest
import tokenizers

from hetjax.data.chat import (
    ChatTemplate,
    Processor,
    ProcessorConfig,
    Tokenizer,
    make_arrays,
    packed_rows,
    parse_messages,
    row_shapes,
)
from hetjax.data.media import Video
from hetjax.errors import ConfigError, DataError
from hetjax.models.parts.audio_clips import tokens_of_clip
from hetjax.models.parts.video_pruning import compact_sequence, keep_count
from tests.data.chat.conftest import encoders

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, size=(16, 24, 3), dtype=np.uint8)  # 4 x 6 patches: 6 tokens
SMALL = RNG.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
AUDIO = RNG.normal(size=16000 // 2).astype(np.float32)  # clips of 0.3 and 0.2 seconds
VIDEO = Video(frames=RNG.integers(0, 256, size=(3, 20, 20, 3), dtype=np.uint8), times=(0.0, 0.5, 1.0), audio=AUDIO)


def user(*parts):
    kinds = {3: "image", 1: "audio"}
    content = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
            continue
        kind = "video" if isinstance(part, Video) else kinds[part.ndim]
        content.append({"type": kind, kind: part})
    return {"role": "user", "content": content}


def answer(text):
    return {"role": "assistant", "content": text}


def sample(processor, *messages, training=True):
    return processor.sample(parse_messages(list(messages), where="here"), training=training)


def test_ids_follow_the_prompt_order(make_processor, tokenizer):
    processor = make_processor(audio_in_video="after_frames", video_prefix="Film:\n", clips=4)
    made = sample(processor, user("See ", IMAGE, " hear ", AUDIO, " watch ", VIDEO), training=False)
    heard = tokens_of_clip(4800) + tokens_of_clip(3200)
    image, audio = "<image>", "<so_embedding>"
    want = (
        "<|im_start|>user\nSee <img>" + image * 6 + "</img> hear <so_start>" + audio * heard + "<so_end> watch Film:\n"
        "Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.50 seconds: <img>" + image * 4 + "</img>\n"
        "Frame 3 sampled at 1.00 seconds: <img>" + image * 4 + "</img>"
        "<so_start>" + audio * heard + "<so_end><|im_end|>\n<|im_start|>assistant\n"
    )
    assert made.ids.tolist() == tokenizer.encode(want)
    assert made.use.tokens == made.use.before_pruning == len(made.ids)
    assert (
        made.use.media["image_rows"] == 4 + 24
        and made.use.media["video_rows"] == 2 * (4 + 16)
        and made.use.media["clips"] == 4
    )


def test_answers_and_their_ends_are_trained(make_processor, tokenizer):
    made = sample(make_processor(), user("a"), answer("bcd"), user("e"), answer("f"))
    said = made.weights == 1
    assert tokenizer.decode(made.ids[said]) == "bcdf"
    assert made.ids[said].tolist().count(tokenizer.eos) == 2
    arrays = make_arrays(make_processor(), [[made]], training=True)["llm"]
    trained = arrays["loss_weights"][0] == 1
    assert arrays["labels"][0][trained].tolist() == made.ids[said].tolist()
    assert np.all(arrays["tokens"][0][1:][trained[:-1]] == arrays["labels"][0][:-1][trained[:-1]])


def check_positions(processor, arrays, row, samples):
    """Every placeholder has one encoder token, in order, and none is left over."""
    tokens = arrays["llm"]["tokens"][row]
    for kind, port in (("image", "image_positions"), ("audio", "audio_positions")):
        positions = arrays["llm"][port][row]
        used = positions[positions < len(tokens)]
        want = np.flatnonzero(tokens == processor.tokenizer.placeholders[kind])
        assert sorted(used.tolist()) == want.tolist()


def test_arrays_of_a_batch_with_unlike_rows(make_processor):
    processor = make_processor(audio_in_video="interleaved", clips=4)
    rows = [
        [sample(processor, user(IMAGE, "x", VIDEO, SMALL), answer("y"))],
        [sample(processor, user("only text"), answer("y"))],
        [sample(processor, user(AUDIO, "x"), answer("y"))],
    ]
    arrays = make_arrays(processor, rows, training=True)
    for module, ports in row_shapes(processor.capacity, training=True).items():
        assert set(ports) == set(arrays[module])
        for port, (shape, dtype) in ports.items():
            assert arrays[module][port].shape == (3, *shape) and arrays[module][port].dtype == dtype
    for row in range(3):
        check_positions(processor, arrays, row, rows[row])
    # Only rows of patches have a place in the sequence.
    places = arrays["vision"]["places"][0]
    tokens = places.reshape(-1, 4, 4)[:, -1, 0] >= 0
    positions = arrays["llm"]["image_positions"][0][: len(tokens)]
    assert np.array_equal(positions < processor.capacity.most.before_pruning, tokens)
    # An image's tokens stand in reading order of 2 x 2 squares: the patch of each token's first row says which.
    firsts = places.reshape(-1, 4, 4)[tokens][:6, 0, :2]
    assert firsts.tolist() == [[r, c] for r in (0, 2) for c in (0, 2, 4)]
    assert np.all(np.diff(positions[tokens][:6]) == 1)
    np.testing.assert_array_equal(arrays["audio"]["lengths"], [[4800, 3200, 0, 0], [0] * 4, [4800, 3200, 0, 0]])


def test_pixels_are_normalized_and_cut_in_the_order_of_the_encoder(make_processor):
    processor = make_processor(pixel_mean=(0.0, 0.5, 1.0), pixel_std=(1.0, 0.5, 0.25))
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 1] = 255
    image[4:8, 8:12] = 51
    made = sample(processor, user(image), training=False)
    assert made.media["image"][0].array.shape == (16, 16, 3)  # 4 x 4 patches, the size that it has
    np.testing.assert_allclose(made.media["image"][0].array[0, 0], [0, 1, -4], atol=1e-5)
    np.testing.assert_allclose(made.media["image"][0].array[4, 8], [0.2, -0.6, -3.2], atol=1e-5)
    arrays = make_arrays(processor, [[made]], training=False)["vision"]
    first = arrays["patches"][0][4].reshape(3, 4, 4)
    np.testing.assert_allclose(first, np.moveaxis(made.media["image"][0].array[:4, :4], -1, 0), atol=1e-6)
    second = arrays["patches"][0][6].reshape(3, 4, 4)
    np.testing.assert_allclose(second, np.moveaxis(made.media["image"][0].array[4:8, :4], -1, 0), atol=1e-6)


def test_packed_rows_hold_the_samples_one_behind_the_other(make_processor):
    processor = make_processor(packed=4, audio_in_video="after_marker", clips=6)
    samples = [
        sample(processor, user(IMAGE, "x"), answer("first")),
        sample(processor, user("text"), answer("second")),
        sample(processor, user(AUDIO, SMALL, VIDEO), answer("third")),
    ]
    (row,) = make_arrays(processor, [samples], training=True)["llm"]["tokens"]
    arrays = make_arrays(processor, [samples], training=True)
    check_positions(processor, arrays, 0, samples)
    ends = np.cumsum([len(made.ids) for made in samples])
    np.testing.assert_array_equal(row[: ends[-1]], np.concatenate([made.ids for made in samples]))
    segments = arrays["llm"]["segments"][0]
    assert [int((segments == i).sum()) for i in range(3)] == [len(made.ids) for made in samples]
    assert np.all(segments[ends[-1] :] == 3)
    assert np.all(arrays["llm"]["loss_weights"][0][ends - 1] == 0)  # no sample is asked for the next one's first token
    # Alone, a sample has the same ids, labels and media.
    alone = make_arrays(processor, [samples[2:]], training=True)
    length = len(samples[2].ids)
    for port in ("tokens", "labels", "loss_weights"):
        got = arrays["llm"][port][0][ends[1] : ends[2]]
        np.testing.assert_array_equal(got, alone["llm"][port][0][:length])
    assert packed_rows(processor, samples) == [[0, 1, 2]]


def test_lengths_after_pruning(make_processor):
    """The rows that are left when the model has dropped video tokens are those that were counted here."""
    processor = make_processor(pruning_rate=0.5, video_rows=2400, seq_len=500)
    long = Video(frames=np.repeat(VIDEO.frames, 4, axis=0), times=tuple(0.5 * i for i in range(12)))
    samples = [sample(processor, user(long, "x"), training=False), sample(processor, user(IMAGE), training=False)]
    kept = keep_count(6, 4, 0.5)
    assert samples[0].use.before_pruning - samples[0].use.tokens == 24 - kept
    arrays = make_arrays(processor, [[made] for made in samples], training=False)
    lengths = [made.use.tokens for made in samples]
    capacity = processor.capacity
    images = capacity.modalities["image"].tokens
    # What an encoder keeps: all tokens of images, and of the first video's those that come first.
    positions = arrays["llm"]["image_positions"]
    videos = np.flatnonzero(positions[0][images:] < capacity.most.before_pruning)[:kept] + images
    none = capacity.modalities["image"].tokens + capacity.modalities["video"].tokens
    left = np.full((2, images + capacity.most.media["kept"]), none, np.int32)
    left[:, :images] = np.arange(images)
    left[0, images : images + kept] = videos
    moved = compact_sequence(positions, left, capacity.most.before_pruning)
    assert moved.source.shape == (2, 500)
    given = np.array([made.use.before_pruning for made in samples], np.int32)
    np.testing.assert_array_equal(moved.shorten(given), lengths)
    after = np.asarray(moved.take(arrays["llm"]["tokens"]))
    assert after[0][: lengths[0]].tolist().count(processor.tokenizer.placeholders["image"]) == kept


def test_images_share_the_context(make_processor):
    big = np.zeros((64, 64, 3), np.uint8)
    alone = sample(make_processor(), user(big), training=False)
    assert alone.use.media["image_rows"] == 4 + 64
    shared = sample(make_processor(context=40, image_rows=400), user(big, big, "x"), training=False)
    assert shared.use.media["image_rows"] < 2 * (4 + 64)


@pytest.mark.parametrize(
    ("changes", "parts", "message"),
    [
        (
            {"seq_len": 30},
            ("x" * 40,),
            r"here: the sample takes \d+ tokens in the language model's sequence, more than 30",
        ),
        ({"image_rows": 32}, (IMAGE, SMALL), r"36 rows of images, more than 32 \(processor.image_rows\)"),
        ({"video_rows": 20}, (VIDEO,), "40 rows of videos, more than 20"),
        ({"clips": 1}, (AUDIO,), "2 clips of audio, more than 1"),
        ({"image_rows": 0}, (IMAGE,), "here: there is image in it, but processor.image_rows is 0"),
        ({}, (np.zeros(100, np.float32),), "too few for a token"),
        ({}, (np.zeros((4, 4, 3), np.float32),), "here: an image is float32"),
    ],
)
def test_what_does_not_fit_is_named(make_processor, changes, parts, message):
    with pytest.raises(DataError, match=message):
        sample(make_processor(**changes), user(*parts), training=False)


def test_settings_that_do_not_fit_are_refused(make_processor, tokenizer):
    with pytest.raises(ConfigError, match="multiple of merge"):
        ProcessorConfig(image_rows=6)
    with pytest.raises(ConfigError, match="audio_in_video"):
        ProcessorConfig(audio_in_video="somewhere")
    config = ProcessorConfig(image_rows=40)
    processor = make_processor()
    with pytest.raises(ConfigError, match="the model takes none"):
        Processor(config, tokenizer, processor.template, seq_len=9, encoders={})
    with pytest.raises(ConfigError, match="patch_size 16 and merge 2"):
        Processor(config, tokenizer, processor.template, seq_len=9, encoders=encoders())


def test_a_text_that_the_tokenizer_does_not_take_is_that_samples_error():
    model = tokenizers.Tokenizer(tokenizers.models.Unigram([("a", 0.0)]))  # without a token for what it does not know
    model.add_special_tokens(["</s>"])
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    processor = Processor(ProcessorConfig(), Tokenizer(model), template, seq_len=9, encoders={})
    assert sample(processor, user("aa"), training=False).ids.tolist() == [0, 0]
    with pytest.raises(DataError, match="here: the tokenizer does not take the text"):
        sample(processor, user("b"), training=False)
