"""A conversion holds no more than two of its largest tensors, whatever the model's size."""

import json
import os
import subprocess
import sys

import pytest

from tests.harness.huggingface.folders import LLAMA, tensors_of, write_folder

LARGE = {
    **LLAMA, "vocab_size": 32768, "hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 6,
    "num_attention_heads": 16, "head_dim": 64,
}  # fmt: skip


def peak(folder, source: str, target: str, *options: str) -> int:
    paths = [str(folder / name) for name in ("small", source, target)]
    run = [sys.executable, "-m", "tests.harness.convert_memory", *paths, *options]
    found = subprocess.run(run, capture_output=True, text=True, timeout=300, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert found.returncode == 0, found.stderr[-2000:]
    return int(found.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_the_memory_of_a_conversion_is_twice_its_largest_tensor_at_most(tmp_path):
    write_folder(tmp_path / "small", LLAMA, tensors_of(LLAMA))
    tensors = tensors_of(LARGE)
    largest = max(tensor.nbytes for tensor in tensors.values())
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert total > 6 * largest
    write_folder(tmp_path / "hf", LARGE, tensors, shards=3)
    del tensors
    found = {
        "in": peak(tmp_path, "hf", "ours"),
        "in, float32": peak(tmp_path, "hf", "wide", "--dtype", "float32") / 2,
        "out": peak(tmp_path, "ours", "back"),
        "out, bfloat16": peak(tmp_path, "wide", "narrow", "--dtype", "bfloat16") / 2,
        "out, fp8": peak(tmp_path, "ours", "fp8", "--quantize", "fp8"),
        "in, fp8": peak(tmp_path, "fp8", "again"),
    }
    ratios = {name: round(each / largest, 2) for name, each in found.items()}
    assert max(found.values()) <= 2 * largest, ratios
    print(json.dumps(ratios))
