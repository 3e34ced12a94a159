"""The stream of batches with images, videos and audio, and of packed rows."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from hetjax.data import DataConfig, SampleLoader, TrainData, check_dataset, eval_batches, write_shapes
from hetjax.data.chat import ChatTemplate, Processor, ProcessorConfig, load_tokenizer
from hetjax.data.position_set import unpack_positions
from hetjax.errors import DataError
from hetjax.models.dynamic_resolution import DynamicResolution
from hetjax.models.patch_rows import PatchRows

TOKENIZER = load_tokenizer(None)
SETTINGS = dict(
    image_rows=20, video_rows=40, clips=1, clip_seconds=0.3,
    resolution=DynamicResolution(patch_size=4, merge=2, min_patches=4, max_patches=16, video_patches=16),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("made") / "shapes", samples=60)


def make_processor(seq_len, **changes):
    rows = dict(patch_size=4, merge=2, prefix_tokens=3)
    vision = SimpleNamespace(tubelet=2, image_rows=PatchRows(**rows), video_rows=PatchRows(**rows, frames=2))
    return Processor(
        ProcessorConfig(**{**SETTINGS, **changes}), TOKENIZER, ChatTemplate(), seq_len=seq_len,
        encoders={"vision": vision, "audio": object()},
    )  # fmt: skip


def make(folder, *, rows=None, seq_len=240, batch_size=4, epochs=2, shapes=1, **changes):
    processor = make_processor(seq_len, **changes)
    config = DataConfig(
        train=str(folder / "train.jsonl"), eval=str(folder / "heldout.jsonl"), seq_len=seq_len, batch_size=batch_size,
        epochs=epochs, workers=2, shapes=shapes, processor=processor.config,
    )  # fmt: skip
    loader = SampleLoader(config, processor)
    return TrainData(loader, rows), loader


def same(first, second):
    assert set(first.arrays) == set(second.arrays)
    for module, inputs in first.arrays.items():
        for port, array in inputs.items():
            np.testing.assert_array_equal(array, second.arrays[module][port], err_msg=f"{module}.{port}")


def lines_of(folder, part):
    return (folder / f"{part}.jsonl").read_text().splitlines()


def answers(arrays):
    """The answers that rows are trained on, in their order."""
    llm = arrays["llm"]
    said = [
        TOKENIZER.decode([token]) if token != TOKENIZER.eos else "|" for token in llm["labels"][llm["loss_weights"] > 0]
    ]
    return "".join(said).strip("|").split("|")


def test_batches_have_the_shapes_that_are_announced(folder):
    data, loader = make(folder)
    batch = next(data)
    for module, ports in loader.shapes(training=True).items():
        for port, (shape, dtype) in ports.items():
            assert batch.arrays[module][port].shape == (4, *shape) and batch.arrays[module][port].dtype == dtype
    data.close()


def test_an_epoch_has_every_answer(folder):
    data, _ = make(folder, epochs=1, batch_size=5)
    got = sorted(itertools.chain.from_iterable(answers(batch.arrays) for batch in data))
    want = sorted(json.loads(line)["messages"][1]["content"] for line in lines_of(folder, "train"))
    assert got == want


@pytest.mark.parametrize("groups", [{}, {"packed": 3}, {"shapes": 2}, {"packed": 3, "shapes": 2}], ids=str)
def test_a_stream_goes_on_where_it_was_saved(folder, groups):
    def make_it(state=None):
        data = make(folder, seq_len=400, image_rows=80, video_rows=120, clips=3, packing_window=8, **groups)[0]
        if state is not None:
            data.set_state(state)
        data.choose_shapes(work=lambda: {"llm": 1.0, "vision": 4.0, "audio": 4.0}, splits={})
        return data

    data = make_it()
    got = [next(data), next(data)]
    state = json.loads(json.dumps(data.get_state()))
    want = [next(data) for _ in range(3)]
    again = make_it(state)
    for batch in want:
        same(next(again), batch)
    assert len(data.shapes) == groups.get("shapes", 1)
    sizes = {batch.capacity.amounts for batch in (*got, *want)}
    assert sizes <= {shape.most.times(4).amounts for shape in data.shapes}
    # A sample a row, all of them fit into the smaller shape.
    assert len(sizes) == (2 if len(groups) == 2 else 1)
    for stream in (data, again):
        stream.close()


def test_packed_rows_have_every_answer_but_the_last_ones(folder):
    data, loader = make(folder, packed=3, seq_len=400, image_rows=80, video_rows=120, clips=3, epochs=1)
    batches = list(data)
    got = list(itertools.chain.from_iterable(answers(batch.arrays) for batch in batches))
    want = [json.loads(line)["messages"][1]["content"] for line in lines_of(folder, "train")]
    assert len(got) > 2 * 4 * len(batches)  # more than two samples a row
    left = len(want) - len(got)
    assert 0 <= left < loader.config.batch_size * 3
    for answer in set(got):
        assert got.count(answer) <= want.count(answer)


@pytest.mark.parametrize("packed", [1, 3])
def test_some_rows_equal_those_of_the_whole(folder, packed):
    sizes = dict(packed=packed, seq_len=400, image_rows=80, video_rows=120, clips=3)
    whole, part = make(folder, **sizes)[0], make(folder, rows=(1, 3), **sizes)[0]
    for _ in range(2):
        all_rows, some = next(whole), next(part)
        for module, inputs in some.arrays.items():
            for port, array in inputs.items():
                np.testing.assert_array_equal(array[1:2], all_rows.arrays[module][port][1:2])
                np.testing.assert_array_equal(array[3:4], all_rows.arrays[module][port][3:4])
    whole.close(), part.close()


def test_held_out_prompts(folder):
    batches = list(eval_batches(make(folder)[1], 4))
    assert sum(batch.count for batch in batches) == 10
    want = [json.loads(line)["messages"][1]["content"] for line in lines_of(folder, "heldout")]
    assert [answer for batch in batches for (answer,) in batch.expected] == want
    batch = batches[0]
    for row in range(4):
        prompt = batch.arrays["llm"]["tokens"][row][: batch.lengths[row]]
        assert TOKENIZER.decode(prompt).endswith("assistant\n")
        assert not np.any(batch.arrays["llm"]["tokens"][row][batch.lengths[row] :])


def test_bad_samples_are_named_and_replaced(folder, tmp_path):
    lines = lines_of(folder, "train")
    lines = [line.replace("media/", f"{folder}/media/") for line in lines[:6]]
    lines[1] = json.dumps({"messages": [{"role": "user", "content": [{"type": "image", "image": "none.png"}]},
                                        {"role": "assistant", "content": "x"}]})  # fmt: skip
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(lines) + "\n")
    config = DataConfig(
        train=str(file), seq_len=240, batch_size=6, workers=0, max_bad_share=0.5, processor=make_processor(240).config,
        allow_outside=True,
    )  # fmt: skip
    loader = SampleLoader(config, make_processor(240))
    summary = check_dataset(loader.trained.joined, loader)
    assert summary.media == 6 and len(summary.missing) == 1
    assert "bad.jsonl:2: file" in summary.bad[0] and "does not exist" in summary.bad[0]
    batch = next(TrainData(loader))
    assert len(batch.bad) == 1 and "bad.jsonl:2: image" in batch.bad[0]
    small = SampleLoader(config, make_processor(20))
    with pytest.raises(DataError, match=r"bad.jsonl:\d: the sample takes .* more than 20 \(seq_len\)"):
        check_dataset(loader.trained.joined, small)


def test_samples_that_wait_for_a_row_are_not_lost_where_none_is_shared(folder):
    data, alone = make(folder, packed=3)[0], make(folder)[0]
    next(data)
    state = data.get_state()
    waiting = len(unpack_positions(state["pool"]))
    assert waiting
    with pytest.raises(DataError, match=rf"{waiting} samples of .* wait .* set one of them to 2 or more"):
        alone.set_state(state)
    for stream in (data, alone):
        stream.close()
