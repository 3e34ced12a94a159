"""hetjax data convert: shards give the samples that they were made of, whatever is stored in them."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from hetjax.cli import main
from hetjax.config.build_loader import make_loader
from hetjax.config.run_config import load_config
from hetjax.data import TrainData, open_source, write_shapes
from hetjax.errors import DataError
from tests.harness.paths import ROOT

CONFIG = str(ROOT / "configs/omni_tiny.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_shapes(folder / "shapes", samples=24)
    return folder / "shapes"


def convert(capsys, *arguments):
    capsys.readouterr()
    main(["data", "convert", *map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def loader_of(train, **settings):
    config, _ = load_config(["--config", CONFIG, "--data.train", str(train)])
    processor = dataclasses.replace(config.data.processor, packed=1)
    changes = {"shuffle": False, "epochs": 1, "batch_size": 5, "workers": 2, "processor": processor, **settings}
    return make_loader(dataclasses.replace(config.data, **changes), config.model)


def batches(train, **settings):
    return [batch.arrays for batch in TrainData(loader_of(train, **settings))]


def assert_same(found, wanted):
    assert len(found) == len(wanted) > 2
    for one, other in zip(found, wanted, strict=True):
        assert {module: set(ports) for module, ports in one.items()} == {
            module: set(ports) for module, ports in other.items()
        }
        for module, ports in one.items():
            for port, array in ports.items():
                np.testing.assert_array_equal(array, other[module][port], err_msg=f"{module}.{port}")


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("format", "pretokenized"),
    [
        ("arrayrecord", True),
        ("webdataset", False),
        pytest.param("arrayrecord", False, marks=SLOW),
        pytest.param("webdataset", True, marks=SLOW),
    ],
)
def test_shards_give_the_same_arrays(folder, tmp_path, capsys, format, pretokenized):
    run = ("--config", CONFIG, "--data.train", folder / "train.jsonl", "--format", format, "--per_shard", 7)
    made = convert(capsys, *run, "--to", tmp_path / "out", *(["--pretokenized", "true"] if pretokenized else []))
    assert made["sources"][0]["samples"] == 20 and made["sources"][0]["shards"] == 3 and made["bad"] == []
    wanted = batches(folder / "train.jsonl")
    assert_same(batches(tmp_path / "out"), wanted)
    again = convert(
        capsys, "--path", tmp_path / "out", "--to", tmp_path / "again", "--format",
        "webdataset" if format == "arrayrecord" else "arrayrecord",
    )  # fmt: skip
    assert again["sources"][0]["samples"] == 20
    (tmp_path / "out").rename(tmp_path / "gone")  # media are inside of the shards
    assert_same(batches(tmp_path / "again"), wanted)


def test_another_tokenizer_template_or_size_is_an_error(folder, tmp_path, capsys):
    run = ("--config", CONFIG, "--data.train", folder / "train.jsonl", "--pretokenized", "true")
    convert(capsys, *run, "--to", tmp_path / "out")
    (tmp_path / "other.jinja").write_text(
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}<|im_end|>{% endfor %}"
    )
    processor = loader_of(tmp_path / "out").processor.config
    other_size = dataclasses.replace(processor.resolution, max_patches=64, min_patches=64)
    for change, word in (
        (dict(chat_template=str(tmp_path / "other.jinja")), "another chat template"),
        (dict(template_options={"enable_thinking": False}), "template_options"),
        (dict(resolution=other_size), "another resolution"),
    ):
        with pytest.raises(DataError, match=word):
            batches(tmp_path / "out", processor=dataclasses.replace(processor, **change))
    loader = loader_of(tmp_path / "out")
    with pytest.raises(DataError, match="evaluate on messages"):
        loader.load_prompt(loader.trained.joined, 0)


def test_held_out_data_are_not_tokenized(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert(
            capsys, "--config", CONFIG, "--source", "eval", "--pretokenized", "true", "--to", tmp_path / "out",
        )  # fmt: skip
    assert "an evaluation cannot read them" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_what_a_sample_says_about_itself_is_kept(tmp_path, capsys):
    record = {"prompt": "?", "completion": "!", "task": "ask", "id": 7, "meta": {"a": 1}}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({**record, **more}) + "\n" for more in ({}, {"source": "b"})))
    convert(capsys, "--path", tmp_path / "a.jsonl", "--to", tmp_path / "out")
    again = open_source(str(tmp_path / "out"))
    about = {"task": "ask", "id": 7, "meta": "{'a': 1}"}
    assert [again[i].about for i in range(2)] == [{**about, "source": s} for s in (f"{tmp_path / 'a.jsonl'}:1", "b")]


def test_bad_samples_are_named_and_left_out(folder, tmp_path, capsys):
    lines = (folder / "train.jsonl").read_text().replace("media/", f"{folder}/media/").splitlines()
    picture = next(line for line in lines if ".png" in line)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG cut")
    bad = json.loads(picture)
    bad["images"] = [str(tmp_path / "cut.png")]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:3], json.dumps(bad), *lines[3:], '{"text": 3}']))
    options = ("--max_bad_share", 0.2, "--allow_outside", "true")
    made = convert(capsys, "--path", tmp_path / "a.jsonl", "--to", tmp_path / "out", *options)
    assert made["sources"][0] | {"bytes": 0, "shards": 1} == {
        "source": str(tmp_path / "a.jsonl"), "samples": 20, "bad": 2, "shards": 1, "bytes": 0,
    }  # fmt: skip
    assert [each.partition(": ")[0] for each in made["bad"]] == [f"{tmp_path / 'a.jsonl'}:{line}" for line in (4, 22)]
    with pytest.raises(SystemExit):
        convert(capsys, "--path", tmp_path / "a.jsonl", "--to", tmp_path / "none", "--max_bad_share", 0)
    assert "more than max_bad_share 0 allows" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none").exists() and not list(tmp_path.glob(".none*"))


def test_several_sources_keep_their_weights(folder, tmp_path, capsys):
    sources = json.dumps([
        {"path": str(folder / "train.jsonl"), "weight": 3},
        {"path": str(folder / "heldout.jsonl"), "weight": 1, "name": "more"},
    ])  # fmt: skip
    made = convert(capsys, "--config", CONFIG, "--data.train", sources, "--data.eval", "null", "--to", tmp_path / "out")
    assert [(each["weight"], each["name"]) for each in made["train"]] == [(3, str(folder / "train.jsonl")), (1, "more")]
    order = lambda train: [  # noqa: E731
        array["llm"]["tokens"] for array in batches(train, eval=None)
    ]
    for found, wanted in zip(order(made["train"]), order(json.loads(sources)), strict=True):
        np.testing.assert_array_equal(found, wanted)


@SLOW
def test_a_killed_conversion_leaves_nothing_that_is_read(tmp_path):
    line = json.dumps({"messages": [{"role": "user", "content": "a" * 2000}, {"role": "assistant", "content": "b"}]})
    (tmp_path / "a.jsonl").write_text((line + "\n") * 40_000)
    command = [sys.executable, "-m", "hetjax", "data", "convert", "--path", "a.jsonl", "--to", "out"]
    child = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"})
    until = time.monotonic() + 100
    while not list(tmp_path.glob(".out.*.partial/*")) and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert len(open_source(tmp_path)) == 40_000  # of the shards none is found


def test_what_is_asked_for_must_make_sense(tmp_path, capsys):
    for arguments, word in (
        ((), "one of them"),
        (("--path", "a.jsonl", "--config", CONFIG), "one of them"),
        (("--path", "a.jsonl", "--pretokenized", "true"), "needs the tokenizer"),
        (("--path", "a.jsonl", "--per_shard", "0"), "per_shard is 0"),
    ):
        with pytest.raises(SystemExit):
            main(["data", "convert", "--to", str(tmp_path / "out"), *arguments])
        assert word in " ".join(capsys.readouterr().err.split())
