import json
import logging
import threading

import numpy as np
import pytest

from hetjax.data import TrainData, eval_batches, load_tokenizer
from hetjax.errors import DataError
from tests.harness.sample_loaders import PER_IMAGE, make_loader, pixels_of

TOKENIZER = load_tokenizer(None)


def stream(config, state=None, **options):
    data = TrainData(make_loader(config, **options))
    if state is not None:
        data.set_state(state)
    return data


def answers(batch):
    """The number that each sample of the datasets in these tests answers."""
    llm = batch.arrays["llm"]
    return [int(TOKENIZER.decode(row[w == 1])) for row, w in zip(llm["labels"], llm["loss_weights"], strict=True)]


def assert_equal(left, right):
    assert (left.epoch, left.bad) == (right.epoch, right.bad)
    for module, arrays in left.arrays.items():
        for name, value in arrays.items():
            np.testing.assert_array_equal(value, right.arrays[module][name], strict=True)


def test_a_batch_has_the_promised_arrays(make_dataset, make_config):
    path = make_dataset(5)
    config = make_config(path, images=3, shuffle=False)
    batch = next(stream(config, image_size=6))
    shapes = {f"{m}.{k}": (v.dtype.name, v.shape) for m, arrays in batch.arrays.items() for k, v in arrays.items()}
    assert shapes == {
        "vision.images": ("float32", (4, 3, 6, 6, 3)),
        "llm.tokens": ("int32", (4, 48)),
        "llm.labels": ("int32", (4, 48)),
        "llm.loss_weights": ("float32", (4, 48)),
        "llm.image_positions": ("int32", (4, 3 * PER_IMAGE)),
    }
    assert answers(batch) == [0, 1, 2, 3]
    assert (batch.epoch, batch.bad) == (0, ())


def test_images_lie_with_their_own_sample_and_padding_is_dropped(make_dataset, make_config):
    path = make_dataset(20)
    lines = path.read_text().splitlines()
    lines[3] = lines[3].replace('["3.png"]', "[]")
    lines[4] = lines[4].replace('["4.png"]', '["4.png", "5.png"]')
    path.write_text("\n".join(lines))
    batch = next(stream(make_config(path, images=2, batch_size=20)))
    images, llm = batch.arrays["vision"]["images"], batch.arrays["llm"]
    for row, answer in enumerate(answers(batch)):
        names = {3: [], 4: [4, 5]}.get(answer, [answer])
        for slot in range(2):
            file = path.parent / f"{names[slot]}.png" if slot < len(names) else None
            expected = pixels_of(file, 8) if file else np.zeros((8, 8, 3), np.float32)
            np.testing.assert_allclose(images[row, slot], expected, atol=1e-6)
        used, padding = np.split(llm["image_positions"][row], [len(names) * PER_IMAGE])
        assert used.tolist() == np.flatnonzero(llm["tokens"][row] == TOKENIZER.placeholder("image")).tolist()
        assert (padding == 48).all()


@pytest.mark.parametrize("workers", [0, 3])
def test_each_epoch_reads_every_sample_once_in_an_order_of_its_own(make_dataset, make_config, workers):
    config = make_config(make_dataset(20), batch_size=5, epochs=3, workers=workers)
    batches = list(stream(config))
    assert [batch.epoch for batch in batches] == [0] * 4 + [1] * 4 + [2] * 4
    orders = [[a for batch in batches if batch.epoch == e for a in answers(batch)] for e in range(3)]
    assert [sorted(order) for order in orders] == [list(range(20))] * 3
    assert len({tuple(order) for order in [*orders, list(range(20))]}) == 4


def test_batches_run_on_across_epochs_and_the_last_partial_one_is_dropped(make_dataset, make_config):
    batches = list(stream(make_config(make_dataset(10), epochs=3, shuffle=False)))
    assert [a for batch in batches for a in answers(batch)] == ([*range(10)] * 3)[:28]
    assert [batch.epoch for batch in batches] == [0, 0, 0, 1, 1, 2, 2]


def test_the_order_depends_on_the_seed_alone(make_dataset, make_config):
    path = make_dataset(16)

    def order(**settings):
        return [a for batch in stream(make_config(path, epochs=2, **settings)) for a in answers(batch)]

    assert order(workers=0) == order(workers=3) == order(batch_size=8)
    assert order(seed=1)[:16] != order(seed=0)[16:] != order(seed=0)[:16] != order(seed=1)[:16]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_restored_stream_equals_the_uninterrupted_one_at_every_batch(make_dataset, make_config, batch_size):
    path = make_dataset(11, truncated=[2, 7])
    path.write_text(path.read_text() + "{broken\n")
    config = make_config(path, epochs=3, batch_size=batch_size, max_shift=2)
    data = stream(config)
    states, batches = [data.get_state()], []
    for batch in data:
        batches.append(batch)
        states.append(data.get_state())
    assert len(batches) == 36 // batch_size
    assert sum(len(batch.bad) for batch in batches) == 9, "each bad sample once an epoch"
    for i, state in enumerate(states):
        resumed = stream(config, json.loads(json.dumps(state)))
        rest = []
        for batch in resumed:
            rest.append(batch)
            assert resumed.get_state() == states[i + len(rest)]
        assert len(rest) == len(batches) - i
        for left, right in zip(rest, batches[i:], strict=True):
            assert_equal(left, right)


def test_a_state_can_be_set_on_a_stream_that_has_read_on(make_dataset, make_config):
    data = stream(make_config(make_dataset(10)))
    state, first = data.get_state(), next(data)
    for _ in range(5):
        next(data)
    data.set_state(state)
    assert_equal(next(data), first)


def test_more_epochs_after_the_end_continue_with_the_samples_of_the_dropped_batch(make_dataset, make_config):
    path = make_dataset(10)
    ended = stream(make_config(path, epochs=1))
    seen = [a for batch in ended for a in answers(batch)]
    seen += [a for batch in stream(make_config(path, epochs=2), ended.get_state()) for a in answers(batch)]
    assert seen == [a for batch in stream(make_config(path, epochs=2)) for a in answers(batch)]


def test_a_stream_without_an_end_repeats(make_dataset, make_config):
    data = stream(make_config(make_dataset(3), batch_size=1))
    assert [next(data).epoch for _ in range(12)] == [i // 3 for i in range(12)]
    assert sorted(answers(next(stream(make_config(make_dataset(3), batch_size=6))))) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": {"any": [9, 0, 0]}}, "samples is 9 in the saved state and 10"),
        ({"seed": 5}, "seed is 5"),
        ({"shuffle": False}, "shuffle is False"),
        ({"seen": 21}, "epochs=2 end after 20"),
    ],
)
def test_a_state_that_cannot_continue_here_is_refused(make_dataset, make_config, change, message):
    data = stream(make_config(make_dataset(10), epochs=2))
    with pytest.raises(DataError, match=message):
        data.set_state(data.get_state() | change)
    with pytest.raises(DataError, match="lacks bad, legs, seed, seen, shuffle, sources"):
        data.set_state({})


def test_a_bad_sample_is_named_and_the_next_good_one_of_the_file_stands_in_for_it(make_dataset, make_config):
    path = make_dataset(8, truncated=[1])
    lines = path.read_text().splitlines()
    lines[3] = "{broken"
    lines[4] = lines[4].replace("What", "x" * 50)
    (path.parent / "5.png").unlink()
    path.write_text("\n".join(lines))
    batches = list(stream(make_config(path, shuffle=False, epochs=1)))
    assert [answers(batch) for batch in batches] == [[0, 2, 2, 6], [6, 6, 6, 7]]
    assert [len(batch.bad) for batch in batches] == [2, 2]
    bad = [reason for batch in batches for reason in batch.bad]
    places, reasons = zip(*(reason.split(": ", 1) for reason in bad), strict=True)
    assert places == tuple(f"{path}:{line}" for line in (2, 4, 5, 6))
    for reason, part in zip(reasons, ("truncated", "JSON", "(seq_len)", "does not exist"), strict=True):
        assert part in reason


def test_a_bad_sample_shifts_no_other_row_and_behind_the_last_line_comes_the_first(make_dataset, make_config):
    config = make_config(make_dataset(12), epochs=2)
    order = [a for batch in stream(config) for a in answers(batch)]
    make_dataset(12, truncated=[4, 11])
    assert [a for batch in stream(config) for a in answers(batch)] == [{4: 5, 11: 0}.get(a, a) for a in order]


def test_a_stand_in_is_moved_as_its_row_says(make_dataset, make_config):
    path = make_dataset(4, truncated=[1])
    batch = next(stream(make_config(path, shuffle=False, max_shift=3), image_size=32))
    assert answers(batch) == [0, 2, 2, 3]
    images = batch.arrays["vision"]["images"]
    assert not np.array_equal(images[1], images[2])


def test_a_bad_sample_is_read_once_more_at_most_however_many_stand_together(make_dataset, make_config, note_reads):
    config = make_config(make_dataset(40, truncated=range(5, 20)), shuffle=False, epochs=1, batch_size=40, workers=0)
    read = note_reads(config.train)
    assert answers(next(stream(config))) == [*range(5), *[20] * 15, *range(20, 40)]
    assert all(read.count(index) <= 2 for index in range(20))


def test_a_batch_that_failed_fails_again_and_then_does_not_shift(make_dataset, make_config):
    path = make_dataset(8, truncated=[5])
    data = stream(make_config(path, shuffle=False, max_bad_share=0.0, epochs=1))
    next(data)
    state = data.get_state()
    for _ in range(2):
        with pytest.raises(DataError, match="1 of the 6 samples"):
            next(data)
    assert data.get_state() == state
    make_dataset(8)
    assert answers(next(data)) == [4, 5, 6, 7]


def test_too_large_a_share_of_bad_samples_stops_with_the_counts_and_the_last_name(make_dataset, make_config):
    path = make_dataset(10, truncated=[4, 6])
    assert len(list(stream(make_config(path, max_bad_share=0.2, epochs=2)))) == 5
    data = stream(make_config(path, max_bad_share=0.19, shuffle=False))
    next(data)
    with pytest.raises(DataError) as error:
        next(data)
    for part in ("2 of the 7 samples", "max_bad_share 0.19 allows (1 of 10)", f"{path}:7: "):
        assert part in str(error.value)


def test_the_share_is_taken_of_blocks_of_a_hundred_samples(make_dataset, make_config):
    path = make_dataset(150, truncated=[0, 120])
    batches = list(stream(make_config(path, max_bad_share=0.01, shuffle=False, epochs=1, batch_size=10)))
    assert sum(len(batch.bad) for batch in batches) == 2
    path = make_dataset(150, truncated=[0, 99])
    with pytest.raises(DataError, match=r"2 of the 100 samples .* allows \(1 of 100\)"):
        list(stream(make_config(path, max_bad_share=0.01, shuffle=False, epochs=1, batch_size=10)))
    with pytest.raises(DataError, match="1 of the 1 samples"):
        next(stream(make_config(path, max_bad_share=0.0, shuffle=False)))


def test_a_share_of_one_still_ends_when_nothing_is_good(make_dataset, make_config):
    with pytest.raises(DataError, match="3 samples one behind the other are bad, all that it has"):
        next(stream(make_config(make_dataset(3, truncated=[0, 1, 2]), max_bad_share=1.0, batch_size=1)))


def test_more_bad_samples_on_end_than_a_pass_may_have_stop_the_search_for_a_stand_in(make_dataset, make_config):
    path = make_dataset(10, truncated=[3, 4, 5])
    assert len(list(stream(make_config(path, shuffle=False, epochs=1, batch_size=1, max_bad_share=0.3)))) == 10
    data = stream(make_config(path, shuffle=False, epochs=1, batch_size=1, max_bad_share=0.2))
    assert [answers(next(data)) for _ in range(3)] == [[0], [1], [2]]
    with pytest.raises(DataError, match=r"3 samples one behind .* allows \(2 of 10\); repair .*train.jsonl:4: "):
        next(data)


def test_a_batch_larger_than_all_epochs_is_a_data_error(make_dataset, make_config):
    with pytest.raises(DataError, match="batch_size 9 exceeds the 8 samples of epochs=2"):
        stream(make_config(make_dataset(4), epochs=2, batch_size=9))


def test_a_missing_dataset_is_a_data_error_before_the_first_batch_is_asked_for(tmp_path, make_config):
    with pytest.raises(DataError, match="absent"):
        stream(make_config(tmp_path / "absent.jsonl"))


def test_a_fault_of_the_program_ends_the_run_and_is_named(make_dataset, make_config):
    loader = make_loader(make_config(make_dataset(4)))

    def broken(chat, training):
        raise RuntimeError("a bug")

    loader.processor.sample = broken
    with pytest.raises(DataError, match=r"RuntimeError: a bug \(test_pipeline.py, line \d+\)"):
        next(TrainData(loader))


def test_reading_is_quiet_and_close_ends_the_threads(make_dataset, make_config, recwarn, caplog, capfd):
    before = set(threading.enumerate())
    with caplog.at_level(logging.INFO):
        data = stream(make_config(make_dataset(10)))
        next(data)
        started = set(threading.enumerate()) - before
        data.close()
    assert started
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert (list(recwarn), caplog.records, tuple(capfd.readouterr())) == ([], [], ("", ""))


def test_training_images_are_moved_afresh_each_epoch_and_held_out_ones_never(make_dataset, make_config):
    config = make_config(make_dataset(4), max_shift=1, shuffle=False, epochs=2)
    still = next(stream(make_config(config.train, shuffle=False))).arrays["vision"]["images"]
    epochs = [batch.arrays["vision"]["images"] for batch in stream(config)]
    assert not np.array_equal(epochs[0], epochs[1])
    for moved in epochs:
        # Away from the border, every moved image is the image itself at one of nine places.
        for image, original in zip(moved[:, 0], still[:, 0], strict=True):
            places = [(i, j) for i in (0, 1, 2) for j in (0, 1, 2)]
            assert any(np.array_equal(image[1:-1, 1:-1], original[i : i + 6, j : j + 6]) for i, j in places)
    held_out = next(eval_batches(make_loader(make_config(config.train, eval=config.train, max_shift=1)), 4))
    assert np.array_equal(held_out.arrays["vision"]["images"], still)


def test_a_model_without_an_encoder_gets_text_only_and_refuses_images(tmp_path, make_dataset, make_config):
    path = tmp_path / "text.jsonl"
    line = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}], "images": []}\n'
    path.write_text(line * 4)
    batch = next(stream(make_config(path, images=0)))
    assert set(batch.arrays) == {"llm"}
    assert set(batch.arrays["llm"]) == {"tokens", "labels", "loss_weights"}
    with pytest.raises(DataError, match="there is image in it, but the model has no encoder for it"):
        next(stream(make_config(make_dataset(4), images=0, max_bad_share=0.0)))


def test_a_sample_may_fill_the_sequence_and_not_pass_it(make_dataset, make_config):
    path = make_dataset(4)
    longest = stream(make_config(path, shuffle=False))
    tokens = next(longest).arrays["llm"]["tokens"]
    length = int((tokens != TOKENIZER.pad).sum(axis=1).max())
    full = next(stream(make_config(path, shuffle=False, seq_len=length))).arrays["llm"]
    np.testing.assert_array_equal(full["tokens"], tokens[:, :length])
    assert full["loss_weights"][0, -1] == 0, "nothing follows the last token"
    with pytest.raises(DataError, match=rf"takes {length} tokens .* more than {length - 1} \(seq_len\)"):
        next(stream(make_config(path, shuffle=False, seq_len=length - 1, max_bad_share=0.0)))
