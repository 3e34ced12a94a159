"""Load a line of a dataset with media as a sample of a processor, or as the reason why it cannot be."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from hetjax.data.bad_samples import BadSample, reason_of
from hetjax.data.chat import Chat, OmniSample, Processor, make_arrays, parse_line, prompt_lengths
from hetjax.data.chat.collate import HostArrays
from hetjax.data.loading import Prompts
from hetjax.data.reading import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class OmniPrompt:
    """A conversation up to its last answer, and that answer."""

    sample: OmniSample
    answer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class OmniLoader:
    """Loads samples by index, for training or (`prompts`) for evaluation; see `hetjax.data.loading.Loader`.

    Keys of samples and messages that are in `ignore_keys` are left out.
    """

    source: Source
    processor: Processor
    prompts: bool = False
    ignore_keys: tuple[str, ...] = ()

    def __call__(self, index: int) -> OmniSample | OmniPrompt | BadSample:
        """Load a sample; any exception comes back as a value, since it would end the pipeline."""
        try:
            return self.load(index)
        except Exception as error:
            return BadSample(reason=reason_of(error, self.source, index))

    def shifted(self, index: int, *, turn: int) -> OmniSample | OmniPrompt | BadSample:
        """Load a sample; its media are not moved at random."""
        return self(index)

    def parse(self, index: int) -> Chat:
        """Return the conversation at `index`, without opening its files. Raises DataError."""
        line = self.source[index]
        return parse_line(
            line.text, where=line.where, folder=line.folder or self.source.folder, ignore=self.ignore_keys
        )

    def load(self, index: int) -> OmniSample | OmniPrompt:
        """Return the sample at `index`. Raises DataError, whose message opens with "file:line: "."""
        chat = self.parse(index)
        if not self.prompts:
            return self.processor.sample(chat, training=True)
        asked, answer = chat.asked()
        return OmniPrompt(sample=self.processor.sample(asked), answer=answer)

    def stack(self, samples: Sequence[OmniSample]) -> HostArrays:
        """Return the arrays of a batch with a sample in each row."""
        return self.stack_rows([[sample] for sample in samples])

    def stack_rows(self, rows: Sequence[Sequence[OmniSample]]) -> HostArrays:
        """Return the arrays of a batch whose rows have several samples each."""
        return make_arrays(self.processor, rows, training=True)

    def stack_prompts(self, prompts: Sequence[OmniPrompt]) -> Prompts:
        """Return the arrays of a batch of prompts."""
        samples = [prompt.sample for prompt in prompts]
        arrays = make_arrays(self.processor, [[sample] for sample in samples], training=False)
        lengths: Int32[np.ndarray, " B"] = prompt_lengths(samples)
        return Prompts(arrays=arrays, lengths=lengths, answers=[prompt.answer for prompt in prompts])
