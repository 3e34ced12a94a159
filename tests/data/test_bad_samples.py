"""Whatever exception a sample raises is that sample's: named, replaced, and counted against `max_bad_share`."""

import base64
import io
import json
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from hetjax.data import DataConfig, check_dataset, eval_batches, load_tokenizer, train_data
from hetjax.data.bad_samples import BadSample, readable
from hetjax.data.chat import ChatTemplate, Processor, ProcessorConfig, load_omni_tokenizer
from hetjax.data.loading import Loader
from hetjax.data.modalities.image import Image as ImageModality
from hetjax.data.omni import OmniLoader
from hetjax.errors import DataError
from hetjax.models.dynamic_resolution import DynamicResolution
from hetjax.models.patch_rows import PatchRows

SETTINGS = dict(image_rows=20, resolution=DynamicResolution(patch_size=4, merge=2, min_patches=4, max_patches=16))


def make_processor():
    vision = SimpleNamespace(tubelet=2, image_rows=PatchRows(patch_size=4, merge=2, prefix_tokens=3), video_rows=None)
    return Processor(
        ProcessorConfig(**SETTINGS), load_omni_tokenizer(None), ChatTemplate(), seq_len=120, encoders={"vision": vision}
    )


def uri(seed=0, size=(8, 8)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def line(text="See", answer="yes", **keys):
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, **keys})


GOOD = [line(images=[uri(i)]) for i in range(4)] + [line(images=None), line(images=[])]
LOADERS = ["images of one size", "processor"]


@pytest.fixture(params=LOADERS)
def make(request, tmp_path):
    """A function that gives (settings, arguments of a stream) for lines of a dataset."""

    def make(lines, **settings):
        path = tmp_path / "train.jsonl"
        path.write_text("\n".join(lines) + "\n")
        defaults = dict(seq_len=120, batch_size=len(lines), workers=2, max_bad_share=0.5, shuffle=False, image_size=8)
        config = DataConfig(train=str(path), eval=str(path), **{**defaults, **settings})
        if request.param == "processor":
            return config, (None, 0, None, make_processor())
        return config, (load_tokenizer(None), 4, None, None)

    return make


def first_batch(config, arguments):
    tokenizer, per_image, rows, processor = arguments
    data = train_data(config, tokenizer, per_image, rows, processor)
    batch = next(data)
    data.close()
    return batch


def test_data_uris_and_null_are_good(make):
    config, arguments = make(GOOD)
    assert first_batch(config, arguments).bad == ()
    summary = check_dataset(config.train, config, arguments[0], arguments[1], arguments[3])
    assert summary.bad == summary.missing == () and summary.images == 0


def test_pixels_of_a_data_uri_are_those_of_the_file(make, tmp_path):
    (tmp_path / "a.png").write_bytes(base64.b64decode(uri(0).partition(",")[2]))
    arrays = first_batch(*make([line(images=[uri(0)]), line(images=["a.png"])])).arrays["vision"]
    for array in arrays.values():
        np.testing.assert_array_equal(array[0], array[1])


SURROGATE = '{"messages": [{"role": "user", "content": "a\\ud800b"}, {"role": "assistant", "content": "yes"}]}'
NAMED = (
    '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "images": ["\\udfff.png"]}'
)
BAD = {
    "a lone surrogate in the text": SURROGATE,
    "a lone surrogate in a name": NAMED,
    "a null character in a name": line(images=["a\0b.png"]),
    "base64 that is none": line(images=[uri()[:-9] + "????!!!!!"]),
    "a data URI of no image": line(images=["data:image/png;base64," + "QUJD" * 500]),
    "a data URI in an object": line(images=[{"file": uri()}]),
    "a folder": line(images=["."]),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_named_and_replaced(make, kind):
    config, arguments = make([*GOOD, BAD[kind]])
    batch = first_batch(config, arguments)
    (reason,) = batch.bad
    assert reason.startswith(f"{config.train}:7: ") and len(reason) < 1200
    reason.encode()  # a log takes it
    assert "QUJDQUJDQUJDQUJD" not in reason and uri()[30:70] not in reason
    held_out = list(eval_batches(config, arguments[0], arguments[1], 4, arguments[3]))
    assert sum((each.bad for each in held_out), ()) == (reason,) and sum(each.count for each in held_out) == 6
    summary = check_dataset(config.train, config, arguments[0], arguments[1], arguments[3])
    assert [each[: len(config.train) + 3] for each in summary.bad] in ([f"{config.train}:7:"], [])  # 4 are tried
    with pytest.raises(DataError, match=r"more than max_bad_share 0 allows .*train.jsonl:7: "):
        first_batch(*make([*GOOD, BAD[kind]], max_bad_share=0.0))


ERRORS = [
    ZeroDivisionError("division by zero"),
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    UnicodeEncodeError("utf-8", "a\ud800", 1, 2, "surrogates not allowed"),
    KeyError("tool"),
    OverflowError("too large"),
    av.error.InvalidDataError(1094995529, "Invalid data"),
    StopIteration("end"),
    AssertionError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("loader", [Loader, OmniLoader])
def test_any_exception_is_its_samples(monkeypatch, make, loader, error):
    """Also of kinds that nobody foresaw, as a library may raise them for one file in a million."""
    load = loader.load

    def sometimes(self, index):
        if index == 2:
            raise error
        return load(self, index)

    config, arguments = make(GOOD)
    monkeypatch.setattr(loader, "load", sometimes)
    batch = first_batch(config, arguments)
    if (loader is OmniLoader) != (arguments[3] is not None):
        assert batch.bad == ()
        return
    (reason,) = batch.bad
    assert reason.startswith(f"{config.train}:3: the sample cannot be used: {type(error).__name__}: ")
    reason.encode()


def test_what_the_user_stops_is_no_bad_sample(monkeypatch):
    loader = Loader(source=None, config=None, tokenizer=None, tokens_per_image=0)

    def stop(self, index):
        raise KeyboardInterrupt

    monkeypatch.setattr(Loader, "load", stop)
    with pytest.raises(KeyboardInterrupt):
        loader(0)


def test_a_line_that_cannot_be_read_any_more_has_a_number(monkeypatch):
    class Gone:
        path = "d.jsonl"

        def __getitem__(self, index):
            raise RuntimeError("gone")

    assert Loader(source=Gone(), config=None, tokenizer=None, tokens_per_image=0)(5).reason.startswith(
        "d.jsonl: sample 5: the sample cannot be used: RuntimeError: gone"
    )
    assert isinstance(OmniLoader(source=Gone(), processor=None)(5), BadSample)


def test_messages_are_short_and_have_no_content():
    assert readable("bad \ud800 text") == "bad \\ud800 text"
    assert readable(f"not '{uri()}'") == f"not 'data:image/png;base64,(... {len(uri()) - 22} characters)'"
    assert len(readable("x" * 10**6)) < 1100


def test_a_modality_that_fails_names_the_sample(monkeypatch, make):
    config, arguments = make(GOOD)
    if arguments[3] is None:
        return

    def fail(self, media, budget):
        return 1 / len(media) and []  # for a sample without images: a division by zero

    monkeypatch.setattr(ImageModality, "prepare", fail)
    with pytest.raises(DataError, match=r"train.jsonl:\d: the sample cannot be used: "):
        first_batch(config, arguments)
