"""Process conversations with media to samples: ids with placeholders, and the arrays that these stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hetjax.data.chat.chat_rendering import render_chat
from hetjax.data.chat.expanded_text import ExpandedText, expand
from hetjax.data.chat.messages import Chat, Part
from hetjax.data.chat.row_capacity import RowCapacity
from hetjax.data.chat.sample import PlacedMedium, RowUse, Sample
from hetjax.data.chat.template import ChatTemplate
from hetjax.data.chat.tokenizer import Tokenizer
from hetjax.data.chat.whole_text import EncodedText
from hetjax.data.modalities import placeholder_texts
from hetjax.data.modalities.config import ProcessorConfig
from hetjax.data.modalities.modality import Budget, PromptPart
from hetjax.data.modalities.prompt_order import Item, Tokens
from hetjax.errors import DataError


class ProcessedChat(NamedTuple):
    """A chat as a text and as the sample that is made of it.

    Attributes:
        text: the text, with placeholders.
        sample: what is made of it.
        raw: its media as they were read.
        parts: its media as they stand in the prompt.
    """

    text: ExpandedText
    sample: Sample
    raw: Sequence[object]
    parts: Sequence[PromptPart]


class Processor:
    """Makes samples of chats; `hetjax.data.chat.collate` makes batches of samples.

    Args:
        config: sizes and options.
        tokenizer: text to ids.
        template: turns to text.
        seq_len: positions of the language model's sequence, after pruning.
        encoders: config of each encoder of the model, by the name of its module.

    Attributes:
        capacity: of a row of the batch.

    Raises ConfigError where `config` asks for what an encoder does not take, or the tokenizer lacks a placeholder.
    """

    def __init__(
        self,
        config: ProcessorConfig,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        seq_len: int,
        encoders: Mapping[str, object],
    ):
        self.config, self.tokenizer, self.template = config, tokenizer, template
        self.encoders = encoders
        self.capacity = RowCapacity.of(config, seq_len, encoders)
        for placeholder in self.capacity.encoders:
            for name in placeholder.texts:
                tokenizer.placeholder(name)

    def sample(self, chat: Chat, *, training: bool = False) -> Sample:
        """Read the media of a chat and fuse them with its text; in `training` with what an assistant says, else
        asking for the next answer.

        Raises:
            DataError: a file cannot be read, the template refuses the chat, or it does not fit into a row.
        """
        return self.process(chat, training=training).sample

    def process(self, chat: Chat, *, training: bool) -> ProcessedChat:
        """Return the sample of a chat with the text that it was made of. Raises as `sample`."""
        rendered = render_chat(
            chat,
            self.template,
            specials=self.tokenizer.specials,
            training=training,
            **self.config.template_options,
        )
        raw = [self._read(part, chat.where) for part in chat.media]
        texts, nothing = placeholder_texts(), [()] * len(raw)
        shared = any(self.capacity.modalities[part.kind].shares_context for part in chat.media)
        taken = len(self._encode(expand(rendered, nothing, texts), chat.where).ids) if shared else 0
        prepared = self._prepare(chat, raw, taken)
        parts = [prepared[number] for number in range(len(raw))]
        text = expand(rendered, [part.items for part in parts], texts)
        sample = self._sample(chat, text, parts)
        self.capacity.check(sample.use, chat.where)
        return ProcessedChat(text, sample, raw, parts)

    def _encode(self, text: ExpandedText, where: str) -> EncodedText:
        try:
            return self.tokenizer.encode_whole(text.text, text.literal)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error

    def _read(self, part: Part, where: str) -> object:
        """Read a medium by its modality."""
        modality = self.capacity.modalities[part.kind]
        if not modality.accepts(self.encoders.get(modality.placeholder.module)):
            raise DataError(
                f"{where}: there is {part.kind} in it, but the model has no encoder for it; remove the line"
            )
        if not self.capacity.takes(modality):
            setting = modality.resources[0].setting
            raise DataError(f"{where}: there is {part.kind} in it, but {setting} is 0; raise it or remove the line")
        try:
            return modality.read(part.value)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error

    def _prepare(self, chat: Chat, raw: Sequence[object], taken: int) -> dict[int, PromptPart]:
        """Return all media of a chat by number, for a prompt whose text takes `taken` tokens, if any shares these."""
        context = self.config.context or self.capacity.most.tokens
        parts: dict[int, PromptPart] = {}
        for modality in sorted(self.capacity.modalities.values(), key=lambda each: each.shares_context):
            numbers = [number for number, part in enumerate(chat.media) if part.kind == modality.name]
            try:
                new = modality.prepare([raw[number] for number in numbers], Budget(context, taken))
            except DataError as error:
                raise DataError(f"{chat.where}: {error}") from error
            taken += sum(_length(part.items, self.tokenizer) for part in new)
            parts |= zip(numbers, new, strict=True)
        return parts

    def _sample(self, chat: Chat, text: ExpandedText, parts: Sequence[PromptPart]) -> Sample:
        """Return the sample of a text, and give each array of the media the positions of its own placeholders."""
        encoded = self._encode(text, chat.where)
        media: dict[str, list[PlacedMedium]] = {name: [] for name in self.capacity.modalities}
        use = dict.fromkeys(self.capacity.most.media, 0)
        for number, part in enumerate(parts):
            positions = self._positions(chat, text, encoded, number)
            used = dict.fromkeys(positions, 0)
            for medium in part.media:
                kind = self.capacity.modalities[medium.modality].placeholder.name
                first = used[kind]
                used[kind] += medium.tokens
                own = np.asarray(positions[kind][first : used[kind]], np.int32)
                media[medium.modality].append(PlacedMedium(medium.array, own))
            for name, amount in part.use.items():
                use[name] += amount
        dropped = sum(part.dropped for part in parts)
        return Sample(
            ids=encoded.ids.astype(np.int32),
            weights=encoded.weights(text.counted),
            media={name: tuple(each) for name, each in media.items()},
            use=RowUse(tokens=len(encoded.ids) - dropped, before_pruning=len(encoded.ids), media=use),
            where=chat.where,
        )

    def _positions(self, chat: Chat, text: ExpandedText, encoded: EncodedText, number: int) -> dict[str, list[int]]:
        """Return the positions of all placeholders of a medium among the ids, by the name of their `Placeholder`."""
        positions: dict[str, list[int]] = {}
        for each in text.placeholders:
            if each.medium != number:
                continue
            found = encoded.at(each.start, each.stop)
            if len(found) != each.count or np.any(encoded.ids[found] != self.tokenizer.placeholder(each.kind)):
                raise DataError(
                    f"{chat.where}: the tokenizer makes {len(found)} tokens of {each.count} placeholders of "
                    f"{each.kind}; give a tokenizer.json in which they are special tokens"
                )
            positions.setdefault(each.kind, []).extend(found.tolist())
        return positions


def _length(items: Sequence[Item], tokenizer: Tokenizer) -> int:
    return sum(item.count + 2 if isinstance(item, Tokens) else len(tokenizer.encode(item)) for item in items)
