"""Hugging Face folders with something wrong in them, drawn at random from a seed.

python -m tests.harness.huggingface.malformed_folders 600   # tries so many, and prints what became of them
"""

from __future__ import annotations

import collections
import copy
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hetjax.checkpoint.huggingface import import_from_huggingface
from hetjax.error_report import is_user_error
from hetjax.models.huggingface.checkpoint import HuggingFaceCheckpoint
from tests.harness.huggingface.folders import LLAMA, QWEN3_MOE, tensors_of, write_folder

SECONDS = 10
"""After which an attempt hangs."""

VALUES: list[Any] = [
    None, "", "x", "silu ", -1, 0, 1, 3, 7, 0.5, 1e308, -1e308, float("nan"), float("inf"), 10**12, 10**30, -(10**30),
    True, False, [], [[]], [1, 2], {}, {"a": {}}, {"type": "yarn", "factor": "x"}, ["full_attention"] * 3, "\ud800",
]  # fmt: skip
"""What stands in the place of a value of config.json."""

MORE = {
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0}, "rope_parameters": {"rope_theta": 5.0},
    "layer_types": ["x"], "quantization_config": {"quant_method": "fp8"}, "sliding_window": 4, "attention_bias": True,
    "auto_map": {"A": "b.C"}, "text_config": {}, "vision_config": {"hidden_size": 8}, "model_type": "mistral",
    "architectures": ["LlamaModel"],
}  # fmt: skip
"""Keys that are put into a config.json that has none."""


class Outcome(NamedTuple):
    """What became of an attempt.

    Attributes:
        kind: what was wrong.
        result: "converted", "refused", "traceback" or "hang".
        message: of the error.
        seconds: how long it took.
    """

    kind: str
    result: str
    message: str
    seconds: float


def attempt(folder: Path, number: int) -> Outcome:
    """Write the malformed folder of a number into `folder`, and convert it."""
    rng = random.Random(number)
    hf = copy.deepcopy(LLAMA if number % 3 else QWEN3_MOE)
    source = write_folder(folder / "hf", hf, tensors_of(hf), shards=1 + number % 2)
    kind = _damage(rng, source, hf)
    before = signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    start = time.monotonic()
    try:
        import_from_huggingface(HuggingFaceCheckpoint(source), folder / "ours")
        result, message = "converted", ""
    except TimeoutError:
        result, message = "hang", ""
    except Exception as error:
        result = "refused" if is_user_error(error) else "traceback"
        message = f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return Outcome(kind, result, message, time.monotonic() - start)


def _hang(*_: object) -> None:
    raise TimeoutError


def _damage(rng: random.Random, source: Path, hf: dict[str, Any]) -> str:
    """Spoil a folder in one way; return which."""
    weights = rng.choice(sorted(source.glob("*.safetensors")))
    kinds: list[Callable[[], str]] = [
        *[lambda: _config_value(rng, source, hf)] * 12,
        *[lambda: _config_text(rng, source)] * 3,
        *[lambda: _bytes(rng, weights)] * 3,
        *[lambda: _header(rng, weights)] * 6,
        lambda: _index(rng, source),
        lambda: _other_file(rng, source),
    ]
    return rng.choice(kinds)()


def _config_value(rng: random.Random, source: Path, hf: dict[str, Any]) -> str:
    key = rng.choice([*hf, *MORE])
    if key in hf and rng.random() < 0.15:
        del hf[key]
        what = f"config without {key}"
    elif key in MORE and rng.random() < 0.5:
        hf[key] = MORE[key]
        what = f"config with {key}"
    else:
        hf[key] = rng.choice(VALUES)
        what = f"config {key} = {hf[key]!r:.40}"
    (source / "config.json").write_text(json.dumps(hf))
    return what


def _config_text(rng: random.Random, source: Path) -> str:
    text = (source / "config.json").read_bytes()
    changed = rng.choice([
        b"", b"null", b"[]", b"3", b'"x"', b"{", b"[" * 60_000, b'{"a":' * 5000, b"\xff\xfe" + text, b"\x00" * 100,
        text[: rng.randrange(len(text))], text + text, text.replace(b":", b"=", 1), b"\xef\xbb\xbf" + text,
        text.decode().encode("utf-16"), b'{"model_type": "llama"}', b'{"model_type": ["llama"]}', b'{"model_type": {}}',
        text.replace(b"{", b'{"num_hidden_layers": 1e400, ', 1),
    ])  # fmt: skip
    (source / "config.json").write_bytes(changed)
    return f"config.json is {changed[:30]!r}"


def _bytes(rng: random.Random, file: Path) -> str:
    data = bytearray(file.read_bytes())
    how = rng.choice(["cut", "empty", "short", "length", "flip", "longer", "folder"])
    if how == "cut":
        data = data[: rng.randrange(len(data))]
    elif how in ("empty", "short"):
        data = data[: 0 if how == "empty" else rng.randrange(1, 12)]
    elif how == "length":
        data[:8] = rng.choice([2**63, 2**40, 0, 1, len(data), 2**64 - 1]).to_bytes(8, "little")
    elif how == "flip":
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(min(len(data), 2000))] ^= 1 << rng.randrange(8)
    elif how == "longer":
        data += b"x" * rng.randrange(1, 50)
    file.unlink()
    if how == "folder":
        file.mkdir()
    else:
        file.write_bytes(data)
    return f"{how} of {file.name}"


def _header(rng: random.Random, file: Path) -> str:
    """Change what the header of a safetensors file says of one tensor."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = rng.choice([each for each in header if each != "__metadata__"])
    what = rng.choice(["dtype", "shape", "data_offsets", "entry", "drop", "name", "metadata"])
    if what == "drop":
        del header[name]
    elif what == "name":
        header[rng.choice(["", "x", name + "s", "model.layers.99.mlp.up_proj.weight", "\x00"])] = header.pop(name)
    elif what == "entry":
        header[name] = rng.choice(VALUES)
    elif what == "metadata":
        header["__metadata__"] = rng.choice(VALUES)
    else:
        shape, (start, stop) = header[name]["shape"], header[name]["data_offsets"]
        choices = {
            "dtype": ["F64", "I64", "BOOL", "F8_E4M3", "X", None, 3, [], "bf16", "U8"],
            "shape": [
                shape[::-1], [*shape, 1], [], [-1], [2**40, 2**40], [0], "x", None, [1.5], [True], [[1]], [10**30],
            ],
            "data_offsets": [
                [stop, start], [start, stop + 2], [-2, stop], [0, 10**15], [], [start], "x", None, [0.0, 2.0],
                [len(body), len(body) + 8], [start, 10**30],
            ],
        }  # fmt: skip
        header[name][what] = rng.choice(choices[what])
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return f"header: {what} of {name}"


def _index(rng: random.Random, source: Path) -> str:
    path = source / "model.safetensors.index.json"
    text = rng.choice([
        "", "[]", "null", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}', "[" * 60_000,
        '{"weight_map": {"a": "../b.safetensors"}}', '{"weight_map": null}', '{"weight_map": {"a": "x\\u0000"}}',
    ])  # fmt: skip
    (source / "model.safetensors").unlink(missing_ok=True)
    path.write_text(text)
    return f"index is {text[:40]}"


def _other_file(rng: random.Random, source: Path) -> str:
    name = rng.choice(
        ["tokenizer.json", "generation_config.json", "chat_template.jinja", "model.safetensors", "config.json"]
    )
    path = source / name
    if path.exists():
        path.unlink()
    how = rng.choice(["folder", "link to itself", "pipe", "link to nothing", "missing"])
    if how == "folder":
        path.mkdir()
    elif how == "link to itself":
        path.symlink_to(path)
    elif how == "link to nothing":
        path.symlink_to(source / "nothing")
    elif how == "pipe":
        os.mkfifo(path)
    return f"{name}: {how}"


def outcomes(count: int, first: int = 0) -> list[Outcome]:
    """Try so many folders."""
    found = []
    for number in range(first, first + count):
        with tempfile.TemporaryDirectory() as folder:
            found.append(attempt(Path(folder), number))
    return found


if __name__ == "__main__":
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = outcomes(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(collections.Counter(each.result for each in made))
    print(f"slowest {max(each.seconds for each in made):.2f} s")
    print(f"memory above the base {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024:.0f} MiB")
    for each in made:
        if each.result in ("traceback", "hang") or each.seconds > 1:
            print(each)
