"""Streams that pack samples into rows and rows into batches of several shapes, stopped anywhere, by any processes."""

import itertools
import json
import re

import numpy as np
import pytest

from hetjax.data import DataConfig, TrainData, load_tokenizer
from hetjax.data.chat import ProcessorConfig
from hetjax.data.position_set import pack_positions, unpack_positions
from hetjax.errors import DataError
from tests.harness.dataset_files import write_jsonl
from tests.harness.sample_loaders import make_loader

TOKENIZER = load_tokenizer(None)
SIZES, BATCH, SEQUENCE = (90, 40, 61), 4, 512
GROUPED = [{"packed": 16}, {"shapes": 3}]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Sources of log-normal lengths, whose samples are numbered from 0, 1000 and 2000 on."""
    folder, rng = tmp_path_factory.mktemp("sources"), np.random.default_rng(0)
    made = []
    for i, size in enumerate(SIZES):
        lengths = rng.lognormal(4, 0.9, size).astype(int).clip(1, 440)
        records = [{"prompt": "?", "completion": f"<{i * 1000 + j}>{'x' * n}"} for j, n in enumerate(lengths)]
        made.append(str(write_jsonl(folder / f"{i}.jsonl", records)))
    return made


def make(paths, packed=1, shapes=1, rows=None, state=None, weights=(3, 1, 2), window=32, **settings):
    train = [
        {"path": path, "name": name} | ({} if weight is None else {"weight": weight})
        for name, path, weight in zip("abc", paths, weights, strict=True)
    ]
    config = DataConfig(
        train=train, seq_len=SEQUENCE, batch_size=BATCH, workers=2, shapes=shapes,
        processor=ProcessorConfig(packed=packed, packing_window=window), **settings,
    )  # fmt: skip
    data = TrainData(make_loader(config), rows)
    if state is not None:
        data.set_state(json.loads(json.dumps(state, sort_keys=True)))
    data.choose_shapes(work=lambda: {"llm": 1.0}, splits={})
    return data


def numbers(batch):
    """The numbers of the samples in each row that was loaded, and the positions of a row."""
    llm = {name: getattr(array, "values", array) for name, array in batch.arrays["llm"].items()}
    rows = [TOKENIZER.decode(row[weights > 0]) for row, weights in zip(llm["labels"], llm["loss_weights"], strict=True)]
    return [[int(found) for found in re.findall(r"<(\d+)>", row)] for row in rows], batch.capacity.tokens // BATCH


def read(data, count):
    found = [numbers(next(data)) for _ in range(count)]
    state = data.get_state()
    data.close()
    return found, state


def read_together(paths, count, batches, **settings):
    """What so many processes read, put together, and the state that each of them saves."""
    rows = [range(i * BATCH // count, (i + 1) * BATCH // count) for i in range(count)]
    parts, states = zip(*(read(make(paths, rows=own, **settings), batches) for own in rows), strict=True)
    assert all(state == states[0] for state in states)
    together = [([row for part in parts for row in part[i][0]], parts[0][i][1]) for i in range(batches)]
    return together, states[0]


@pytest.mark.parametrize("groups", GROUPED, ids=str)
def test_an_epoch_has_every_sample_once(paths, groups):
    data = make(paths, **groups, weights=(None,) * 3, epochs=1)
    batches = list(map(numbers, data))
    got = [sample for rows, _ in batches for row in rows for sample in row]
    wanted = [i * 1000 + j for i, size in enumerate(SIZES) for j in range(size)]
    assert len(set(got)) == len(got) and set(got) <= set(wanted) and len(wanted) - len(got) < BATCH
    assert len({length for _, length in batches}) == (3 if groups == {"shapes": 3} else 1)


@pytest.mark.parametrize("groups", GROUPED, ids=str)
def test_a_stream_stopped_anywhere_goes_on_the_same_in_any_number_of_processes(paths, groups):
    whole, _ = read(make(paths, **groups), 24)
    state = None
    for begin, batches, count in ((0, 5, 4), (5, 6, 2), (11, 1, 4), (12, 12, 1)):
        found, state = read_together(paths, count, batches, state=state, **groups)
        assert found == whole[begin : begin + batches]
        assert len(json.dumps(state)) < 500


@pytest.mark.parametrize("groups", GROUPED, ids=str)
def test_a_source_of_another_weight_from_a_checkpoint_on(paths, groups):
    first, state = read_together(paths, 4, 5, epochs=2, **groups)
    whole, changed = make(paths, state=state, weights=(1, 6, 1), epochs=2, **groups), (1, 6, 1)
    rest = list(map(numbers, whole))
    some, again = read_together(paths, 2, 6, state=state, weights=changed, epochs=2, **groups)
    last, _ = read_together(paths, 1, len(rest) - 6, state=again, weights=changed, epochs=2, **groups)
    assert [*some, *last] == rest
    drawn = [sample for rows, _ in [*first, *rest] for row in rows for sample in row]
    assert 0 <= 2 * sum(SIZES) - len(drawn) < BATCH
    for i, size in enumerate(SIZES):
        counts = np.bincount([sample - i * 1000 for sample in drawn if sample // 1000 == i], minlength=size)
        assert np.sum(counts < counts.max() - 1) < BATCH, "but for those dropped at the end all are read as often"
    late = [sample // 1000 for rows, _ in rest[-10:] for row in rows for sample in row]
    assert np.mean(np.asarray(late) == 1) > 0.6


def test_shorter_batches_have_the_shorter_rows_and_little_is_padding(paths):
    one, several = make(paths), make(paths, shapes=3)
    padding = [np.mean([next(data).padding["tokens"] for _ in range(30)]) for data in (one, several)]
    lengths = [shape.most.tokens for shape in several.shapes]
    assert len(lengths) == 3 and lengths == sorted(lengths) and lengths[-1] == SEQUENCE
    batch = next(several)
    assert batch.arrays["llm"]["tokens"].shape == (BATCH, batch.capacity.tokens // BATCH)
    several.close(), one.close()
    assert padding[1] < padding[0] - 0.2


def test_packed_batches_have_at_most_three_percent_padding_and_count_their_tokens(paths):
    data = make(paths, packed=16, window=64)
    batches = list(itertools.islice(data, 30))
    data.close()
    used = sum(int((batch.arrays["llm"]["tokens"] != TOKENIZER.pad).sum()) for batch in batches)
    assert used == sum(batch.use.tokens for batch in batches)
    assert np.mean([batch.padding["tokens"] for batch in batches]) <= 0.03
    segments = sum(
        len(set(row[weights > 0]))
        for batch in batches
        for row, weights in zip(batch.arrays["llm"]["segments"], batch.arrays["llm"]["loss_weights"], strict=True)
    )
    assert segments == sum(batch.samples for batch in batches)


def test_a_state_goes_on_with_other_settings_of_groups(paths):
    _, state = read(make(paths, packed=16, shapes=2), 5)
    with pytest.raises(DataError, match=r"samples of the saved state wait .* set one of them to 2 or more"):
        make(paths, state=state)
    pool, rows = set(unpack_positions(state["pool"])), make(paths, shapes=3, state=state)
    assert len(rows.shapes) == 3 and set(unpack_positions(rows.get_state()["pool"])) == pool
    old = {**state, "pool": sorted(pool)}
    found = [numbers(next(make(paths, packed=16, shapes=2, state=each))) for each in (state, old)]
    assert found[0] == found[1]
    rows.close()


def test_positions_are_packed_to_a_short_text():
    rng = np.random.default_rng(0)
    for positions in ([], [7], [5, 6, 7], sorted(rng.choice(100_000, 300, replace=False).tolist())):
        packed = json.loads(json.dumps(pack_positions(positions)))
        assert unpack_positions(packed) == positions
        assert len(json.dumps(packed)) < 40 + 3 * len(positions)
    assert unpack_positions([3, 9]) == [3, 9] and unpack_positions([3]) == [3]


def test_shapes_are_chosen_once_even_where_it_is_one(paths, monkeypatch):
    monkeypatch.setattr("hetjax.data.pipeline.run_shapes", lambda uses, capacity, **settings: [capacity])
    data = make(paths, shapes=3)
    state = data.get_state()
    data.close()
    assert len(state["shapes"]["amounts"]) == 1
    monkeypatch.setattr("hetjax.data.pipeline.run_shapes", None)  # calling it again would fail
    make(paths, shapes=3, state=state).close()
