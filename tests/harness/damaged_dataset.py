"""A dataset of good samples with damaged ones among them, and a pass over it as training makes one.

python -m tests.harness.damaged_dataset 10000 1000   # good samples, damaged ones: prints what is found
"""

from __future__ import annotations

import base64
import collections
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from PIL import Image

from hetjax.data import DataConfig, SampleLoader, TrainData, load_tokenizer
from hetjax.data.chat import ChatTemplate, Processor, ProcessorConfig
from hetjax.data.media import VideoSampling
from hetjax.models.dynamic_resolution import DynamicResolution
from hetjax.models.patch_rows import PatchRows
from tests.harness.media_files import film, grey, sound, tone, track

BATCH, SEQ_LEN = 8, 256


class Found(NamedTuple):
    """What a pass found.

    `named` has the lines that were named as bad, `memory` the most bytes in use in each quarter, `longest` seconds of
    the slowest attempt at a sample.
    """

    batches: int
    named: collections.Counter[int]
    reasons: list[str]
    memory: list[int]
    longest: float
    seconds: float


def make_dataset(folder: Path, good: int, damaged: int) -> tuple[Path, set[int]]:
    """Write so many samples of each kind, and return the file and the lines (from 1) of those that are damaged."""
    random = np.random.default_rng(0)
    media = _good_media()
    for name, data in media.items():
        (folder / name).write_bytes(data)
    makers = _damages(folder, media, random)
    is_bad = np.zeros(good + damaged, bool)
    is_bad[random.choice(good + damaged, damaged, replace=False)] = True
    lines, bad = [], set()
    for number, damage in enumerate(is_bad.tolist(), 1):
        if damage:
            lines.append(makers[len(bad) % len(makers)](number))
            bad.add(number)
        else:
            lines.append(_good_line(number, list(media)))
    path = folder / "train.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path, bad


def run(path: Path, *, packed: int = 1, workers: int = 2) -> Found:
    """Stream one epoch of a dataset's training batches, and return what was found on the way."""
    loader = _loader(path, packed, workers)
    taken: list[float] = []
    load = loader.load

    def timed(source, index, *, turn=None):
        start = time.perf_counter()
        try:
            return load(source, index, turn=turn)
        finally:
            taken.append(time.perf_counter() - start)

    loader.load = timed
    total = len(loader.trained.joined) // (BATCH * packed) + 1
    named, reasons, batches, memory, start = collections.Counter(), [], 0, [0] * 4, time.perf_counter()
    for batches, batch in enumerate(TrainData(loader), 1):
        quarter = min(4 * batches // total, 3)
        memory[quarter] = max(memory[quarter], _resident())
        reasons += batch.bad
        named.update(int(reason.removeprefix(f"{path}:").partition(":")[0]) for reason in batch.bad)
    return Found(batches, named, reasons, memory, max(taken), time.perf_counter() - start)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _loader(path: Path, packed: int, workers: int) -> SampleLoader:
    rows = dict(patch_size=4, merge=2)
    vision = SimpleNamespace(tubelet=2, image_rows=PatchRows(**rows), video_rows=PatchRows(**rows, frames=2))
    processor = ProcessorConfig(
        image_rows=64 * packed, video_rows=96 * packed, clips=2 * packed, clip_seconds=0.5, packed=packed,
        frames=VideoSampling(fps=2, max_frames=6),
        resolution=DynamicResolution(patch_size=4, merge=2, min_patches=4, max_patches=16, video_patches=16),
    )  # fmt: skip
    config = DataConfig(
        train=str(path), seq_len=SEQ_LEN * packed, batch_size=BATCH, epochs=1, workers=workers, max_bad_share=0.2,
        processor=processor,
    )  # fmt: skip
    encoders = {"vision": vision, "audio": object()}
    made = Processor(processor, load_tokenizer(None), ChatTemplate(), seq_len=config.seq_len, encoders=encoders)
    return SampleLoader(config, made)


def _picture(kind: str, number: int, **options) -> bytes:
    buffer, noise = io.BytesIO(), np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).resize((40, 40)).save(buffer, kind, **options)
    return buffer.getvalue()


def _good_media() -> dict[str, bytes]:
    audio = tone(440, 0.4)
    frames = [grey(20 * i) for i in range(8)]
    return {
        **{f"{i}.png": _picture("PNG", i) for i in range(10)},
        **{f"{i}.jpg": _picture("JPEG", i) for i in range(10)},
        "a.webp": _picture("WEBP", 0),
        "a.gif": _picture("GIF", 0),
        **{f"{i}.wav": sound(tone(200 + 50 * i, 0.4), "WAV", "PCM_16") for i in range(8)},
        "a.flac": sound(audio, "FLAC", "PCM_16"),
        "a.ogg": sound(audio, "OGG", "VORBIS"),
        "a.mp3": sound(audio, "MP3"),
        "a.m4a": track(audio, "aac", "ipod"),
        "a.mp4": film(frames, codec="h264", movflags="faststart"),
        "b.mp4": film(frames, codec="mpeg4", audio=audio),
        "a.mkv": film(frames, codec="h264", container="matroska"),
    }


def _kind(name: str) -> str:
    suffix = name.rpartition(".")[2]
    if suffix in ("mp4", "mkv"):
        return "videos"
    return "images" if suffix in ("png", "jpg", "webp", "gif") else "audios"


def _line(number: int, text: str = "See?", **more: object) -> bytes:
    messages = [{"role": "user", "content": f"{number}: {text}"}, {"role": "assistant", "content": "yes"}]
    return json.dumps({"messages": messages, **more}).encode()


def _good_line(number: int, names: list[str]) -> bytes:
    few = number % 50 == 0
    if number % 5 in (0, 1, 2) and not few:
        return _line(number, "What is it? " * (number % 7))
    usable = [name for name in names if (_kind(name) == "videos") == few]
    name = usable[number % len(usable)]
    return _line(number, **{_kind(name): [name]})


def _damages(folder: Path, media: dict[str, bytes], random: np.random.Generator):
    """Return functions, each of which gives the line of a sample that cannot be used."""

    def file(number: int, name: str, data: bytes) -> bytes:
        (folder / f"bad_{number}_{name}").write_bytes(data)
        return _line(number, **{_kind(name): [f"bad_{number}_{name}"]})

    def cut(name: str):
        # Of some formats the very last bytes hold nothing that is needed.
        return lambda number: file(number, name, media[name][: int(len(media[name]) * random.uniform(0.05, 0.8))])

    def head(name: str):
        return lambda number: file(number, name, bytes(64) + media[name][64:])

    def only(name: str, data: bytes):
        return lambda number: file(number, name, data)

    def changed(name: str):  # formats with a checksum of all their content
        def make(number: int) -> bytes:
            data = bytearray(media[name])
            data[len(data) // 2] ^= 0x55
            return file(number, name, bytes(data))

        return make

    uri = f"data:image/png;base64,{base64.b64encode(media['0.png']).decode()}"
    nan = sound(np.full(4000, np.nan, np.float32), "WAV", "FLOAT")
    huge = _picture("PNG", 0)
    huge = huge[:16] + (60_000).to_bytes(4, "big") * 2 + huge[24:]
    lists = "#EXTM3U\n#EXTINF:1,\na.mp4\n#EXT-X-ENDLIST\n"
    kinds = [
        "0.png",
        "0.jpg",
        "a.webp",
        "a.gif",
        "0.wav",
        "a.flac",
        "a.ogg",
        "a.mp3",
        "a.m4a",
        "a.mp4",
        "b.mp4",
        "a.mkv",
    ]
    texts = {
        "no JSON": lambda n: b'{"messages": [{"role": "user", ' + str(n).encode(),
        "no object": lambda n: b"[%d]" % n,
        "no UTF-8": lambda n: _line(n).replace(b"See", b"S\xff\xfe"),
        "lone surrogate": lambda n: _line(n).replace(b"See", b"S\\ud800"),
        "no messages": lambda n: json.dumps({"messages": []}).encode(),
        "unknown role": lambda n: _line(n).replace(b'"user"', b'"nobody"'),
        "no answer": lambda n: json.dumps({"messages": [{"role": "user", "content": str(n)}]}).encode(),
        "null answer": lambda n: _line(n).replace(b'"yes"', b"null"),
        "unknown key": lambda n: _line(n, imagse=["0.png"]),
        "too long": lambda n: _line(n, "word " * 400),
        "mark without a file": lambda n: _line(n, "<image> and <image>", images=["0.png"]),
        "no such file": lambda n: _line(n, images=[f"none_{n}.png"]),
        "a folder": lambda n: _line(n, images=["."]),
        "null in a name": lambda n: _line(n, images=["a\0b.png"]),
        "an address": lambda n: _line(n, images=["https://example.com/a.png"]),
        "a device": lambda n: _line(n, audios=["/dev/zero"]),
        "broken base64": lambda n: _line(n, images=[uri[:-9] + "????!!!!!"]),
        "uri of no image": lambda n: _line(n, images=["data:image/png;base64," + "QUJD" * 50]),
        "names that are none": lambda n: _line(n, images=[{"file": "0.png"}]),
        "nested too deep": lambda n: b'{"messages": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    }
    files = [
        *(cut(name) for name in kinds),
        *(head(name) for name in ("0.png", "0.jpg", "a.webp", "0.wav", "a.flac", "a.mp4")),
        *(changed(name) for name in ("0.png", "a.flac", "a.ogg")),
        *(only(name, b"") for name in ("0.png", "0.wav", "a.mp4")),
        *(only(name, b"This is a text. " * 40) for name in ("0.png", "0.wav", "a.mp4")),
        *(only(name, random.bytes(3000)) for name in ("0.jpg", "0.wav", "a.mp4")),
        only("0.wav", media["0.png"]),
        only("0.png", media["a.mp4"]),
        only("a.mp4", media["0.wav"]),
        only("0.wav", nan),
        only("0.png", huge),
        only("a.mp4", lists.encode()),
    ]
    return [*texts.values(), *files]


if __name__ == "__main__":
    good, damaged = map(int, sys.argv[1:3])
    with tempfile.TemporaryDirectory() as folder:
        path, bad = make_dataset(Path(folder), good, damaged)
        for packed in (1, 4):
            found = run(path, packed=packed)
            print(
                f"packed {packed}: {found.batches} batches in {found.seconds:.0f} s; {len(found.named)} samples named, "
                f"{sum(count > 1 for count in found.named.values())} of them twice, "
                f"{len(set(found.named) - bad)} of them good; {len(bad - set(found.named))} damaged ones not named; "
                f"most memory by quarter {', '.join(f'{most / 2**20:.0f}' for most in found.memory)} MiB; "
                f"slowest sample {found.longest:.2f} s"
            )
            lines = path.read_bytes().splitlines()
            for number in sorted(bad - set(found.named))[:5]:
                print(f"not named: {lines[number - 1][:200]!r}")
            for reason in found.reasons:
                if int(reason.removeprefix(f"{path}:").partition(":")[0]) not in bad:
                    print(f"good, but named: {reason}")
