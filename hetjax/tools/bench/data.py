"""hetjax bench data: how fast samples are read, decoded, tokenized and collated."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import tokenizers
from PIL import Image
from rich.progress import track
from tokenizers import decoders, models, pre_tokenizers, trainers

from hetjax.config.run_config import TrainConfig
from hetjax.data import JsonlSource
from hetjax.data.bad_samples import BadSample
from hetjax.data.chat import (
    ChatTemplate,
    Processor,
    ProcessorConfig,
    Sample,
    Tokenizer,
    make_arrays,
    parse_line,
)
from hetjax.data.chat.template import BUILT_IN_MARKS
from hetjax.data.modalities import placeholder_texts
from hetjax.errors import ConfigError, DataError
from hetjax.models import RadioConfig
from hetjax.models.dynamic_resolution import DynamicResolution
from hetjax.tools.data.run_samples import open_samples
from hetjax.tools.outcome import Json, Outcome, stderr
from hetjax.tools.tables import NumberTable

_BATCH = 8  # samples that are collated together
_SIDE = 512  # pixels
_LETTERS = "etaoinshrdlcumwfgypbvk"
_WORDS = 5000


class _Work(NamedTuple):
    """What samples took.

    Attributes:
        samples, tokens, images: that were made; tokens with placeholders.
        cpu: seconds of processor time, of all threads.
        seconds: that passed.
    """

    samples: int
    tokens: int
    images: int
    cpu: float
    seconds: float


def bench_data(*, config: TrainConfig | None = None, samples: int = 128, rounds: int = 5) -> Outcome:
    """Measure loading: samples of made conversations, and of made images of 512 x 512, a second and core.

    Conversations of eight messages, whose text a byte BPE tokenizer takes, trained on such text; images with details
    of all sizes, as JPEG and PNG. They are read from files, decoded, rendered, tokenized, and collated in batches
    of 8, by one thread. "A core" is by processor time, so that what else runs on the machine matters little. With
    the settings of a run its own data are measured, too, without collating them.

    Args:
        config: The settings of a run.
        samples: Samples of each kind in a round.
        rounds: Rounds, of which the median counts.
    """
    if samples < _BATCH or rounds < 1:
        raise ConfigError(f"samples is {samples} and rounds {rounds}; give {_BATCH} or more and 1 or more")
    kinds: dict[str, Callable[[int], Sample]] = {}
    random = np.random.default_rng(0)
    text = _Text(random)
    with tempfile.TemporaryDirectory() as folder:
        processor = _processor(text)
        for kind, lines in _lines(Path(folder), text, random).items():
            path = Path(folder) / f"{kind}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            kinds[kind] = _loader(JsonlSource(path), processor)
        works = {kind: _measure(load, samples, rounds, processor, kind) for kind, load in kinds.items()}
    if config is not None:
        works[config.name] = _measure_run(config, samples, rounds)
    numbers = {kind: _speeds(work) for kind, work in works.items()}
    return Outcome(numbers=numbers, shown=(_table(numbers),))


class _Text:
    """Text of made words, the frequent ones as frequent as in a language."""

    def __init__(self, random: np.random.Generator):
        self._random = random
        lengths = random.integers(2, 10, size=_WORDS)
        self._words = ["".join(random.choice(list(_LETTERS), size=length)) for length in lengths]
        shares = 1 / np.arange(1, _WORDS + 1)
        self._shares = shares / shares.sum()

    def __call__(self, words: int) -> str:
        """Return so many words."""
        return " ".join(self._random.choice(self._words, size=words, p=self._shares))


def _processor(text: _Text) -> Processor:
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=[*BUILT_IN_MARKS, *placeholder_texts().values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator([text(2000) for _ in range(20)], trainer)
    resolution = DynamicResolution()
    patches = (_SIDE // resolution.patch_size) ** 2
    vision = RadioConfig(width=64, layers=1, heads=1, mlp_width=64)
    rows = vision.image_rows.rows(_SIDE // resolution.patch_size, _SIDE // resolution.patch_size)
    return Processor(
        ProcessorConfig(image_rows=rows, resolution=resolution),
        Tokenizer(model),
        ChatTemplate(),
        seq_len=4 * patches,
        encoders={"vision": vision},
    )


def _lines(folder: Path, text: _Text, random: np.random.Generator) -> Mapping[str, list[Mapping[str, object]]]:
    """Write images, and return the samples of each kind."""

    def said(role: str, words: int) -> dict[str, str]:
        return {"role": role, "content": text(words)}

    talks = [
        [said(role, words) for _ in range(4) for role, words in (("user", 60), ("assistant", 120))] for _ in range(32)
    ]
    lines: dict[str, list[Mapping[str, object]]] = {"text": [{"messages": talk} for talk in talks]}
    pictures = [_picture(random) for _ in range(8)]
    for kind, options in (("jpeg", {"quality": 90}), ("png", {})):
        lines[kind] = []
        for number, picture in enumerate(pictures):
            picture.save(folder / f"{number}.{kind}", **options)
            messages = [said("user", 8), said("assistant", 20)]
            lines[kind].append({"messages": messages, "images": [f"{number}.{kind}"]})
    return lines


def _picture(random: np.random.Generator) -> Image.Image:
    """Return a picture whose details become fainter the smaller they are, as those of a photograph."""
    total = np.full((_SIDE, _SIDE, 3), 128, np.float32)
    sides = [2**power for power in range(2, _SIDE.bit_length())]
    for side in sides:
        noise = random.normal(size=(side, side, 3)).astype(np.float32) * 128 / np.sqrt(side)
        planes = [Image.fromarray(noise[..., i]).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC) for i in range(3)]
        total += np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def _loader(source: JsonlSource, processor: Processor) -> Callable[[int], Sample]:
    def load(index: int) -> Sample:
        line = source[index % len(source)]
        return processor.sample(parse_line(line.text, where=line.where, folder=source.folder), training=True)

    return load


def _measure(load: Callable[[int], Sample], samples: int, rounds: int, processor: Processor, kind: str) -> list[_Work]:
    [load(index) for index in range(_BATCH)]
    works = []
    for _ in track(range(rounds), kind, console=stderr(), disable=not stderr().is_terminal):
        cpu, start, tokens, images = time.process_time(), time.perf_counter(), 0, 0
        for first in range(0, samples, _BATCH):
            batch = [load(index) for index in range(first, min(first + _BATCH, samples))]
            make_arrays(processor, [[sample] for sample in batch], training=True)
            tokens += sum(len(sample.ids) for sample in batch)
            images += sum(len(sample.media["image"]) for sample in batch)
        works.append(_Work(samples, tokens, images, time.process_time() - cpu, time.perf_counter() - start))
    return works


def _measure_run(config: TrainConfig, samples: int, rounds: int) -> list[_Work]:
    run = open_samples(config)
    numbers = run.some(samples)
    works = []
    for _ in track(range(rounds), config.name, console=stderr(), disable=not stderr().is_terminal):
        cpu, start = time.process_time(), time.perf_counter()
        made = [sample for number in numbers if not isinstance(sample := run.load(number), BadSample)]
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - start
        tokens = sum(len(sample.ids) for sample in made)
        images = sum(len(sample.media.get("image", ())) for sample in made)
        works.append(_Work(len(made), tokens, images, cpu, seconds))
    if not works[0].samples:
        raise DataError(f"none of the first {len(numbers)} samples of '{run.source.path}' can be used")
    return works


def _speeds(works: Sequence[_Work]) -> dict[str, Json]:
    """Return how many a second: by processor time, and by the clock."""
    middle = median([work.cpu / work.samples for work in works])
    clock = median([work.seconds / work.samples for work in works])
    first = works[0]
    return {
        "samples_per_core_second": 1 / middle,
        "tokens_per_core_second": first.tokens / first.samples / middle,
        "images_per_core_second": first.images / first.samples / middle,
        "samples_per_second": 1 / clock,
        "tokens_per_sample": first.tokens / first.samples,
        "images_per_sample": first.images / first.samples,
    }


def _table(numbers: Mapping[str, Mapping[str, float]]) -> NumberTable:
    names = {"jpeg": f"JPEG {_SIDE} x {_SIDE}", "png": f"PNG {_SIDE} x {_SIDE}"}
    return NumberTable(
        title="loading, by one thread",
        texts=("samples",),
        numbers=("tokens a sample", "samples/s a core", "tokens/s a core", "images/s a core", "samples/s by the clock"),
        rows=[
            (
                names.get(kind, kind),
                f"{each['tokens_per_sample']:,.0f}",
                f"{each['samples_per_core_second']:,.0f}",
                f"{each['tokens_per_core_second']:,.0f}",
                f"{each['images_per_core_second']:,.0f}",
                f"{each['samples_per_second']:,.0f}",
            )
            for kind, each in numbers.items()
        ],
    )
