"""Load a line of a dataset as the arrays of one sample, or as the reason why it cannot be.

B batch · S fused sequence · I images a sample · N = I * tokens_per_image encoder tokens · H, W pixels
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32

from hetjax.data.bad_samples import BadSample, reason_of
from hetjax.data.chat.collate import HostArrays
from hetjax.data.config import DataConfig
from hetjax.data.conversation import Conversation, Prompt, Sample, parse_conversation, render, render_prompt
from hetjax.data.images import load_image, shift_image
from hetjax.data.media import DataUri
from hetjax.data.reading import Source
from hetjax.data.tokenizer import Tokenizer
from hetjax.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedSample:
    """A rendered conversation and its images, both padded to `images_per_sample` images.

    The position of an encoder token of a padding image is S, which is beyond the sequence.
    """

    rendered: Sample | Prompt
    images: Float32[np.ndarray, "I H W 3"]
    image_positions: Int32[np.ndarray, N]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """Arrays of a batch of prompts, how many ids of each row are prompt, and the answers that are expected."""

    arrays: HostArrays
    lengths: Int32[np.ndarray, " B"]
    answers: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loader:
    """Loads samples by index, for training or (`prompts`) for evaluation.

    With 0 `tokens_per_image` the model has no vision encoder, and a sample with images is bad.
    """

    source: Source
    config: DataConfig
    tokenizer: Tokenizer
    tokens_per_image: int
    prompts: bool = False

    def __call__(self, index: int) -> LoadedSample | BadSample:
        """Load a sample; any exception comes back as a value, since it would end the pipeline."""
        try:
            return self.load(index)
        except Exception as error:
            return BadSample(reason=reason_of(error, self.source, index))

    def shifted(self, index: int, *, turn: int) -> LoadedSample | BadSample:
        """Load a sample with its images moved by up to `max_shift` pixels, at random but fixed by seed and `turn`."""
        sample, most = self(index), self.config.max_shift
        if most == 0 or isinstance(sample, BadSample):
            return sample
        random = np.random.default_rng((self.config.seed, turn))
        moves = random.integers(-most, most, size=(len(sample.images), 2), endpoint=True)
        images = [shift_image(image, *move) for image, move in zip(sample.images, moves, strict=True)]
        return dataclasses.replace(sample, images=np.stack(images))

    def parse(self, index: int) -> Conversation:
        """Return the conversation at `index`, without opening its images.

        Raises:
            DataError: malformed, or more images than `images_per_sample`.
        """
        line = self.source[index]
        conversation = parse_conversation(
            line.text,
            where=line.where,
            folder=line.folder or self.source.folder,
            ignore=self.config.ignore_keys,
        )
        most = self.config.images_per_sample
        if conversation.images and self.tokens_per_image == 0:
            raise DataError(
                f"{line.where}: the sample has images, but the model has no vision encoder; "
                "give the model one (model.vision) or remove the images"
            )
        if len(conversation.images) > most:
            raise DataError(
                f"{line.where}: {len(conversation.images)} images, more than images_per_sample {most}; "
                "raise images_per_sample or remove the line"
            )
        return conversation

    def load(self, index: int) -> LoadedSample:
        """Return the sample at `index` as arrays.

        Raises:
            DataError: malformed, too long, or an image cannot be read; the message opens with "file:line: ".
        """
        conversation = self.parse(index)
        rendering = render_prompt if self.prompts else render
        rendered = rendering(conversation, self.tokenizer, self.tokens_per_image, self.config.seq_len)
        used = len(rendered.image_positions)
        positions = np.full(self.config.images_per_sample * self.tokens_per_image, self.config.seq_len, np.int32)
        positions[:used] = rendered.image_positions
        # A prompt stops before the last answer: images that are shown after it are not read.
        shown = used // self.tokens_per_image if used else 0
        images = self._images(conversation.images[:shown], conversation.where)
        return LoadedSample(rendered=rendered, images=images, image_positions=positions)

    def stack(self, samples: Sequence[LoadedSample]) -> HostArrays:
        """Return the arrays of a batch; also of no rows, where a process needs none."""
        sequence, images = self.config.seq_len, self.config.images_per_sample
        rendered = [sample.rendered for sample in samples]
        llm = {
            "tokens": _rows([sample.tokens for sample in rendered], np.int32, sequence),
            "labels": _rows([sample.labels for sample in rendered], np.int32, sequence),
            "loss_weights": _rows([sample.loss_weights for sample in rendered], np.float32, sequence),
        }
        if self.tokens_per_image == 0:
            return {"llm": llm}
        positions = [sample.image_positions for sample in samples]
        llm["image_positions"] = _rows(positions, np.int32, images * self.tokens_per_image)
        pixels = (images, self.config.image_size, self.config.image_size, 3)
        return {"vision": {"images": _rows([sample.images for sample in samples], np.float32, *pixels)}, "llm": llm}

    def stack_prompts(self, samples: Sequence[LoadedSample]) -> Prompts:
        """Return the arrays of a batch of prompts."""
        prompts = [sample.rendered for sample in samples]
        arrays: HostArrays = {"llm": {"tokens": np.stack([prompt.tokens for prompt in prompts])}}
        if self.tokens_per_image:
            arrays["llm"]["image_positions"] = np.stack([sample.image_positions for sample in samples])
            arrays["vision"] = {"images": np.stack([sample.images for sample in samples])}
        lengths = np.asarray([prompt.length for prompt in prompts], np.int32)
        return Prompts(arrays=arrays, lengths=lengths, answers=[prompt.answer for prompt in prompts])

    def _images(self, sources: Sequence[Path | DataUri], where: str) -> Float32[np.ndarray, "I H W 3"]:
        size = self.config.image_size
        images = np.zeros((self.config.images_per_sample, size, size, 3), np.float32)
        for i, source in enumerate(sources):
            try:
                images[i] = load_image(source, size)
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
        return images


def _rows(values: Sequence[np.ndarray], dtype: type, *shape: int) -> np.ndarray:
    """Stack arrays; with a shape and a dtype also where a process needs no row."""
    return np.stack(values) if values else np.empty((0, *shape), dtype)
