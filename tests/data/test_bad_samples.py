"""Whatever exception a sample raises is that sample's: named, replaced, and counted against `max_bad_share`."""

import base64
import io
import json
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from hetjax.data import DataConfig, SampleLoader, TrainData, check_dataset, eval_batches
from hetjax.data.bad_samples import readable, tried
from hetjax.data.chat import ProcessorConfig
from hetjax.data.modalities.image import Image as ImageModality
from hetjax.data.modalities.square_image import SquareImage
from hetjax.errors import DataError
from hetjax.models.dynamic_resolution import DynamicResolution
from hetjax.models.patch_rows import PatchRows
from tests.harness.sample_loaders import make_loader

RESOLUTION = DynamicResolution(patch_size=4, merge=2, min_patches=4, max_patches=16)
KINDS = {
    "images of one size": (ProcessorConfig(images=1), SimpleNamespace(image_size=8, tokens_per_image=4)),
    "images of any size": (
        ProcessorConfig(image_rows=20, resolution=RESOLUTION),
        SimpleNamespace(tubelet=2, image_rows=PatchRows(patch_size=4, merge=2, prefix_tokens=3), video_rows=None),
    ),
}


def uri(seed=0, size=(8, 8)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def line(text="See", answer="yes", **keys):
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, **keys})


GOOD = [line(images=[uri(i)]) for i in range(4)] + [line(images=None), line(images=[])]


@pytest.fixture(params=KINDS)
def make(request, tmp_path):
    """A function that gives the loader of a dataset of these lines."""

    def make(lines, **settings):
        path = tmp_path / "train.jsonl"
        path.write_text("\n".join(lines) + "\n")
        defaults = dict(seq_len=120, batch_size=len(lines), workers=2, max_bad_share=0.5, shuffle=False)
        processor, vision = KINDS[request.param]
        config = DataConfig(train=str(path), eval=str(path), processor=processor, **{**defaults, **settings})
        return make_loader(config, encoders={"vision": vision})

    return make


def first_batch(loader):
    data = TrainData(loader)
    batch = next(data)
    data.close()
    return batch


def test_data_uris_and_null_are_good(make):
    loader = make(GOOD)
    assert first_batch(loader).bad == ()
    summary = check_dataset(loader.trained.joined, loader)
    assert summary.bad == summary.missing == () and summary.media == 0


def test_pixels_of_a_data_uri_are_those_of_the_file(make, tmp_path):
    (tmp_path / "a.png").write_bytes(base64.b64decode(uri(0).partition(",")[2]))
    arrays = first_batch(make([line(images=[uri(0)]), line(images=["a.png"])])).arrays["vision"]
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
    "a line of a log in a name": line(images=["a.png\nerror: all is lost"]),
    "escapes in a name": line(images=["\x1b[2J\x1b]0;owned\x07\u202egnp.a"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_named_and_replaced(make, kind):
    loader = make([*GOOD, BAD[kind]])
    config, (reason,) = loader.config, first_batch(loader).bad
    assert reason.startswith(f"{config.train}:7: ") and len(reason) < 1200
    reason.encode()  # a log takes it
    assert reason.isprintable()  # on one line, and no terminal obeys it
    assert "QUJDQUJDQUJDQUJD" not in reason and uri()[30:70] not in reason
    held_out = list(eval_batches(loader, 4))
    assert sum((each.bad for each in held_out), ()) == (reason,) and sum(each.count for each in held_out) == 6
    summary = check_dataset(loader.trained.joined, loader)
    assert [each[: len(config.train) + 3] for each in summary.bad] in ([f"{config.train}:7:"], [])  # 4 are tried
    with pytest.raises(DataError, match=r"more than max_bad_share 0 allows .*train.jsonl:7: "):
        first_batch(make([*GOOD, BAD[kind]], max_bad_share=0.0))


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
def test_any_exception_is_its_samples(monkeypatch, make, error):
    """Also of kinds that nobody foresaw, as a library may raise them for one file in a million."""
    load = SampleLoader.load

    def sometimes(self, source, index, **turn):
        if index == 2:
            raise error
        return load(self, source, index, **turn)

    loader = make(GOOD)
    monkeypatch.setattr(SampleLoader, "load", sometimes)
    (reason,) = first_batch(loader).bad
    assert reason.startswith(f"{loader.config.train}:3: the sample cannot be used: {type(error).__name__}: ")
    reason.encode()


def test_what_the_user_stops_is_no_bad_sample():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tried(stop, [], 0)


def test_a_line_that_cannot_be_read_any_more_has_a_number():
    class Gone:
        path = "d.jsonl"

        def __getitem__(self, index):
            raise RuntimeError("gone")

    loader = make_loader(DataConfig(train="d.jsonl", seq_len=9, batch_size=1))
    found = tried(lambda: loader.load(Gone(), 5), Gone(), 5)
    assert found.reason.startswith("d.jsonl: sample 5: the sample cannot be used: RuntimeError: gone")


def test_messages_are_short_and_have_no_content():
    assert readable("bad \ud800 text") == "bad \\ud800 text"
    assert readable("a\nb\x1b[31mc\u202e\u2028") == r"a\nb\x1b[31mc\u202e\u2028"
    assert readable("naïve 文 🙂") == "naïve 文 🙂"
    assert readable(f"not '{uri()}'") == f"not 'data:image/png;base64,(... {len(uri()) - 22} characters)'"
    assert len(readable("x" * 10**6)) < 1100


def test_a_modality_that_fails_names_the_sample(monkeypatch, make):
    def fail(self, media, budget):
        return 1 / len(media) and []  # for a sample without images: a division by zero

    for modality in (ImageModality, SquareImage):
        monkeypatch.setattr(modality, "prepare", fail)
    with pytest.raises(DataError, match=r"train.jsonl:\d: the sample cannot be used: "):
        first_batch(make(GOOD))
