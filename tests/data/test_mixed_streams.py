"""Streams of several sources: by any number of processes, stopped anywhere, with other weights, a share held out."""

import contextlib
import json
import tracemalloc

import numpy as np
import pytest

from hetjax.data import (
    DataConfig,
    TrainData,
    check_dataset,
    eval_batches,
    load_tokenizer,
    open_train,
    sources,
)
from hetjax.data.bad_samples import StandIns
from hetjax.data.chat import ProcessorConfig
from hetjax.errors import ConfigError, DataError
from tests.harness.dataset_files import WRITERS, write_jsonl
from tests.harness.sample_loaders import make_loader

TOKENIZER = load_tokenizer(None)
SIZES = {"a.jsonl": 31, "b.json": 12, "c.tar": 20}
BATCH = 8


@pytest.fixture
def paths(tmp_path):
    """Sources of three formats, whose answers are numbers from 0 on, from 100 on and from 200 on."""
    for i, (name, size) in enumerate(SIZES.items()):
        records = [{"prompt": "?", "completion": str(i * 100 + j)} for j in range(size)]
        WRITERS[f".{name.partition('.')[2]}"](tmp_path / name, records)
    return [str(tmp_path / name) for name in SIZES]


def make(paths, weights=(3, 1, 2), rows=None, state=None, **settings):
    train = [{"path": path, "weight": weight} for path, weight in zip(paths, weights, strict=True)]
    defaults = {"seq_len": 40, "batch_size": BATCH, "workers": 2, "epochs": 40}
    data = TrainData(make_loader(DataConfig(**{"train": train, **defaults, **settings})), rows)
    if state is not None:
        data.set_state(json.loads(json.dumps(state, sort_keys=True)))
    return data


def answers(batch):
    llm = batch.arrays["llm"]
    arrays = [getattr(llm[name], "values", llm[name]) for name in ("labels", "loss_weights")]
    return [int(TOKENIZER.decode(row[weights == 1])) for row, weights in zip(*arrays, strict=True)]


def read(data, count):
    found = [answers(next(data)) for _ in range(count)]
    state = data.get_state()
    data.close()
    return found, state


def processes(count):
    """The rows of each of so many processes."""
    return [range(i * BATCH // count, (i + 1) * BATCH // count) for i in range(count)]


def read_together(paths, count, batches, state=None, **settings):
    """What so many processes read, put together, and the state that each of them saves."""
    parts, states = zip(
        *(read(make(paths, rows=rows, state=state, **settings), batches) for rows in processes(count)), strict=True
    )
    assert all(each == states[0] for each in states)
    return [[answer for part in parts for answer in part[i]] for i in range(batches)], states[0]


def test_any_number_of_processes_reads_the_same_and_four_go_on_as_two(paths):
    whole, _ = read(make(paths), 30)
    for count in (1, 2, 4, 8):
        assert read_together(paths, count, 6)[0] == whole[:6]
    rng, done, state = np.random.default_rng(0), 0, None
    for count in (4, 2, 4, 1, 8):
        batches = int(rng.integers(1, 6))
        found, state = read_together(paths, count, batches, state)
        assert found == whole[done : done + batches]
        done += batches


def test_a_source_of_another_weight_goes_on_where_each_was(paths):
    first, state = read_together(paths, 4, 5)
    other = (1, 6, 1)
    rest, again = read_together(paths, 2, 40, state, weights=other)
    assert read_together(paths, 1, 40, state, weights=other) == (rest, again)
    drawn = [answer for batch in [*first, *rest] for answer in batch]
    for i, size in enumerate(SIZES.values()):
        own = [answer - i * 100 for answer in drawn if answer // 100 == i]
        passes = [own[j : j + size] for j in range(0, len(own) - size + 1, size)]
        assert passes and all(sorted(each) == [*range(size)] for each in passes), "no sample is skipped or read twice"
    counts = np.bincount([answer // 100 for batch in rest for answer in batch])
    np.testing.assert_allclose(counts / counts.sum(), np.asarray(other) / 8, atol=0.01)


def test_without_weights_every_source_is_read_as_often_as_it_repeats(paths):
    train = [paths[0], {"path": paths[1], "repeat": 3}, paths[2]]
    total = 31 + 36 + 20
    config = DataConfig(train=train, seq_len=40, batch_size=total, workers=0, epochs=2)
    for batch in TrainData(make_loader(config)):
        expected = [*range(31), *[*range(100, 112)] * 3, *range(200, 220)]
        assert sorted(answers(batch)) == sorted(expected)


@pytest.mark.parametrize("packed", [1, 4])
def test_a_stream_with_packing_stopped_anywhere_goes_on_the_same(paths, packed):
    def stream(weights, state=None):
        train = [{"path": path, "weight": weight} for path, weight in zip(paths, weights, strict=True)]
        config = DataConfig(train=train, seq_len=180, batch_size=2, workers=2, processor=ProcessorConfig(packed=packed))
        data = TrainData(make_loader(config))
        if state is not None:
            data.set_state(json.loads(json.dumps(state, sort_keys=True)))
        return data

    def rows(data, count):
        found = [next(data).arrays["llm"]["tokens"] for _ in range(count)]
        state = data.get_state()
        data.close()
        return found, state

    whole, _ = rows(stream((3, 1, 2)), 20)
    state = None
    for begin, count in ((0, 3), (3, 1), (4, 9), (13, 7)):
        found, state = rows(stream((3, 1, 2), state), count)
        for one, other in zip(found, whole[begin : begin + count], strict=True):
            np.testing.assert_array_equal(one, other)
        assert len(json.dumps(state)) < 1000
    # The pool of samples that wait for a row was read under the old weights, and is not lost under the new ones.
    changed, state = rows(stream((1, 5, 1), state), 4)
    again, _ = rows(stream((1, 5, 1), state), 4)
    straight, _ = rows(stream((1, 5, 1), rows(stream((3, 1, 2)), 20)[1]), 8)
    for one, other in zip([*changed, *again], straight, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_held_out_share_is_the_same_whatever_the_seed_and_no_sample_of_training(paths, tmp_path):
    settings = {"train": [paths[0], paths[1]], "eval": {"share": 0.2}, "seq_len": 40, "batch_size": 1, "workers": 0}

    def held(seed):
        config = DataConfig(**settings, seed=seed)
        return [int(answer) for batch in eval_batches(make_loader(config), 4) for (answer,) in batch.expected]

    assert held(0) == held(7) == sorted(held(0))
    assert (len([each for each in held(0) if each < 100]), len([each for each in held(0) if each >= 100])) == (6, 2)
    batches = TrainData(make_loader(DataConfig(**settings, epochs=2)))
    trained = [answer for batch in batches for answer in answers(batch)]
    assert sorted(trained + held(0) * 2) == sorted([*range(31), *range(100, 112)] * 2)
    with pytest.raises(DataError, match=r"has one sample, which data\.eval holds out"):
        one = write_jsonl(tmp_path / "one.jsonl", [{"text": "x"}])
        open_train(DataConfig(train=str(one), eval={"share": 0.5}, seq_len=8, batch_size=1))


def test_a_state_from_before_there_were_several_sources_goes_on(tmp_path):
    path = str(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "?", "completion": str(i)} for i in range(21)]))
    config = DataConfig(train=path, seq_len=40, batch_size=4, workers=0)
    whole, _ = read(TrainData(make_loader(config)), 12)
    data = TrainData(make_loader(config))
    data.set_state({"samples": 21, "shuffle": True, "seed": 0, "seen": 20, "bad": 0})
    assert read(data, 7)[0] == whole[5:]


@pytest.mark.parametrize("samples", [1100, pytest.param(11_000, marks=pytest.mark.slow)])
def test_many_damaged_samples_among_good_ones_are_each_named_once_and_memory_stays_flat(tmp_path, samples):
    rng = np.random.default_rng(0)
    damaged = set(rng.choice(samples, samples // 11, replace=False).tolist())
    kinds = ["{broken", '{"txet": "x"}', '{"prompt": "no answer"}', "[1]", '{"conversations": [{"from": "who"}]}']
    lines = [
        kinds[i % 5] if i in damaged else json.dumps({"prompt": "?", "completion": str(i)}) for i in range(samples)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    config = DataConfig(
        train=str(path), seq_len=40, batch_size=samples // 22, workers=0, epochs=1, max_bad_share=0.2, shuffle=False
    )
    reasons, read_answers, held = [], set(), []
    tracemalloc.start()
    for batch in TrainData(make_loader(config)):
        reasons += batch.bad
        read_answers |= set(answers(batch))
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sorted(reason.split(": ", 1)[0] for reason in reasons) == sorted(f"{path}:{i + 1}" for i in damaged)
    assert all(reason.split(": ", 1)[1] for reason in reasons)
    assert read_answers == set(range(samples)) - damaged
    # What is kept is a number for each, and here the reasons and the answers, which this test collects.
    assert held[-1] - held[3] < 300 * samples
    loader = make_loader(config)
    found = len(check_dataset(loader.trained.joined, loader).bad)
    assert found == len(damaged) if samples < 10_000 else 890 < found < 920, "of 10,000 lines spread over all"


def test_a_share_of_sources_that_have_some_files_alike_is_refused(paths):
    one, both = paths[0], paths[0].replace("a.jsonl", "*.json*")
    settings = {"seq_len": 40, "batch_size": BATCH, "eval": {"share": 0.2}}
    config = DataConfig(train=[one, both], **settings)
    with pytest.raises(ConfigError, match=r"share .*but not all of their files"):
        open_train(config)
    # One file read twice holds out the same samples both times.
    twice = DataConfig(train=[{"path": one, "name": name} for name in "ab"], **settings)
    held_out = make_loader(twice).held_out
    lines = {held_out[i].where for i in range(len(held_out))}
    trained = open_train(twice).joined
    assert lines and lines.isdisjoint(trained[i].where for i in range(len(trained)))


def test_a_stand_in_is_of_the_same_source():
    def load(index, turn):
        if index in (4, 8):
            raise DataError("bad")
        return index

    whole, apart = (StandIns(load, range(9), most=9, ends=ends) for ends in ((), (5, 9)))
    assert [whole.fill(index, turn=0).sample for index in (4, 8)] == [5, 0]
    assert [apart.fill(index, turn=0).sample for index in (4, 8, 2)] == [0, 5, 2]


@pytest.mark.parametrize("held_out", [{"share": 0.2}, None])
def test_a_run_opens_each_source_once_and_parses_a_sample_once(paths, monkeypatch, held_out):
    opened, parsed, loads = [], [], json.loads
    real = sources.open_files
    monkeypatch.setattr(sources, "open_files", lambda path, split: opened.append(path) or real(path, split))
    held_out = held_out or [paths[1]]
    train = paths if isinstance(held_out, dict) else [paths[0]]
    loader = make_loader(DataConfig(train=train, eval=held_out, seq_len=40, batch_size=BATCH, workers=0, shuffle=False))
    for source in (loader.trained.joined, loader.held_out):
        assert not check_dataset(source, loader).bad
    list(eval_batches(loader, 4))
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or loads(text))
    with contextlib.closing(TrainData(loader)) as data:
        next(data)
    assert sorted(opened) == sorted(set(opened)) and set(opened) == {*train, *paths[1:2]}
    assert len(parsed) == BATCH
