"""Safetensors files, against the library of that name."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hetjax.models import ModelError
from hetjax.models.huggingface.tensor_files.shards import ShardWriter, plan_shards
from hetjax.models.huggingface.tensor_files.tensors import CheckpointTensors, SafetensorsFile, TensorInfo

RANDOM = np.random.default_rng(0)
TENSORS = {
    "a": RANDOM.normal(size=(5, 7)).astype(np.float32),
    "b": RANDOM.normal(size=(3, 4, 2)).astype(ml_dtypes.bfloat16),
    "number": np.asarray(3, np.int64),
    "none": np.zeros((0, 4), np.float32),
    "bytes": np.arange(6, dtype=np.uint8),
}


def info(array) -> TensorInfo:
    return TensorInfo(array.shape, array.dtype)


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes(), name


def test_what_the_library_writes_is_read(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert_same(dict(CheckpointTensors(tmp_path)), TENSORS)


def test_the_library_reads_what_is_written_in_any_order_and_layout(tmp_path):
    infos = {name: info(array) for name, array in TENSORS.items()}
    with ShardWriter(tmp_path, infos) as writer:
        for name in reversed(TENSORS):
            # In another order in memory, too.
            writer.write(name, np.array(TENSORS[name], order="F"))
    assert_same(load_file(tmp_path / "model.safetensors"), TENSORS)
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_shards_with_an_index_come_back(tmp_path):
    infos = {name: info(array) for name, array in TENSORS.items()}
    with ShardWriter(tmp_path, infos, shard_bytes=100) as writer:
        for name, array in TENSORS.items():
            writer.write(name, array)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in TENSORS.values())
    assert sorted(set(index["weight_map"].values())) == [f"model-{i}-of-00002.safetensors" for i in ("00001", "00002")]
    assert_same(dict(CheckpointTensors(tmp_path)), TENSORS)
    for shard in set(index["weight_map"].values()):
        for name, array in load_file(tmp_path / shard).items():
            assert array.tobytes() == TENSORS[name].tobytes()


def test_eight_bit_floats_are_read_with_their_dtype(tmp_path):
    values = np.arange(8).astype(ml_dtypes.float8_e4m3fn)
    with ShardWriter(tmp_path, {"w": info(values)}) as writer:
        writer.write("w", values)
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.get_slice("w").get_dtype() == "F8_E4M3"
    assert_same(dict(CheckpointTensors(tmp_path)), {"w": values})


def test_no_shard_is_larger_than_asked_unless_by_one_tensor():
    infos = {str(i): TensorInfo((size,), np.dtype(np.uint8)) for i, size in enumerate([3, 4, 20, 1, 2])}
    assert plan_shards(infos, 7) == [["0", "1"], ["2"], ["3", "4"]]


def test_a_tensor_that_nobody_wrote_is_reported(tmp_path):
    with (
        pytest.raises(ModelError, match="nobody wrote b"),
        ShardWriter(tmp_path, {n: info(TENSORS[n]) for n in "ab"}) as writer,
    ):
        writer.write("a", TENSORS["a"])


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    writer = ShardWriter(tmp_path, {"a": info(TENSORS["a"])})
    with pytest.raises(ModelError, match=r"tensor a is float32\[7, 5\], but float32\[5, 7\] was announced"):
        writer.write("a", TENSORS["a"].T)


@pytest.mark.parametrize("left", [4, 40, -3])
def test_a_file_that_is_cut_short_is_refused(tmp_path, left):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ModelError, match=r"model\.safetensors: .*cut short"):
        SafetensorsFile(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((8).to_bytes(8, "little") + b"no json!" + b"x" * 8)
    with pytest.raises(ModelError, match="the header is no JSON"):
        SafetensorsFile(path)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"x" * 8)
    with pytest.raises(ModelError, match="takes 8 bytes, but the header gives it 4"):
        SafetensorsFile(path)


def test_a_missing_shard_and_a_folder_without_weights_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        CheckpointTensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    with pytest.raises(ModelError, match=r"names x\.safetensors, which the folder lacks"):
        CheckpointTensors(tmp_path)
    save_file({"b": TENSORS["a"]}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=r"puts tensor a into x\.safetensors, which does not hold it"):
        CheckpointTensors(tmp_path)


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_names_files_of_its_own_folder_alone(tmp_path, shard):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ModelError, match="not files of its own folder"):
        CheckpointTensors(tmp_path)


@pytest.mark.parametrize("weight_map", [["a"], {"a": 1}, {"a": None}])
def test_a_malformed_index_is_an_error(tmp_path, weight_map):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="is no index"):
        CheckpointTensors(tmp_path)


def test_an_index_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors.index.json")
    with pytest.raises(ModelError, match="no regular file"):
        CheckpointTensors(tmp_path)
