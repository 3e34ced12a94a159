"""Process conversations with media to samples: ids with placeholders, and the arrays that these stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hetjax.data.chat.chat_rendering import Piece, render_chat
from hetjax.data.chat.messages import Chat, Part
from hetjax.data.chat.row_capacity import RowCapacity
from hetjax.data.chat.sample import OmniSample, PlacedMedium, RowUse
from hetjax.data.chat.special_tokens import OmniTokenizer
from hetjax.data.chat.template import ChatTemplate
from hetjax.data.modalities.config import ProcessorConfig
from hetjax.data.modalities.modality import Budget, PromptPart
from hetjax.data.modalities.prompt_order import Item, Tokens
from hetjax.errors import DataError


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
        tokenizer: OmniTokenizer,
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

    def sample(self, chat: Chat, *, training: bool = False) -> OmniSample:
        """Read the media of a chat and fuse them with its text; in `training` with what an assistant says, else
        asking for the next answer.

        Raises:
            DataError: a file cannot be read, the template refuses the chat, or it does not fit into a row.
        """
        pieces = render_chat(
            chat,
            self.template,
            specials=self.tokenizer.specials,
            training=training,
            **self.config.template_options,
        )
        raw = [self._read(part, chat.where) for part in chat.media]
        texts = [self.tokenizer.encode(piece.text) if piece.medium is None else [] for piece in pieces]
        parts = self._prepare(chat, raw, sum(map(len, texts)))
        fused = _FusedSample(self.tokenizer, self.capacity)
        for piece, ids in zip(pieces, texts, strict=True):
            if piece.medium is None:
                fused.add_text(ids, piece)
            else:
                fused.add_part(parts[piece.medium])
        sample = fused.sample(chat.where)
        self.capacity.check(sample.use, chat.where)
        return sample

    def _read(self, part: Part, where: str) -> object:
        """Read a medium by its modality."""
        modality = self.capacity.modalities[part.kind]
        if not self.capacity.takes(modality):
            setting = modality.resources[0].setting
            raise DataError(f"{where}: there is {part.kind} in it, but {setting} is 0; raise it or remove the line")
        try:
            return modality.read(part.value)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error

    def _prepare(self, chat: Chat, raw: Sequence[object], taken: int) -> dict[int, PromptPart]:
        """Return all media of a chat by number, ready for the prompt, whose text takes `taken` tokens."""
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


def _length(items: Sequence[Item], tokenizer: OmniTokenizer) -> int:
    return sum(item.count + 2 if isinstance(item, Tokens) else len(tokenizer.encode(item)) for item in items)


class _FusedSample:
    """A sample as it grows."""

    def __init__(self, tokenizer: OmniTokenizer, capacity: RowCapacity):
        self._tokenizer, self._capacity = tokenizer, capacity
        self._ids: list[int] = []
        self._said: list[bool] = []
        self._media: dict[str, list[PlacedMedium]] = {name: [] for name in capacity.modalities}
        self._use = dict.fromkeys(capacity.most.media, 0)
        self._dropped = 0

    def add_text(self, ids: list[int], piece: Piece) -> None:
        said = [piece.said] * len(ids)
        if piece.ends_answer and ids and ids[0] in self._tokenizer.special_ids:
            said[0] = True
        self._ids += ids
        self._said += said

    def add_part(self, part: PromptPart) -> None:
        """Append a medium's items, and give each of its arrays the positions of its own placeholders."""
        positions = self._add_items(part.items)
        used = dict.fromkeys(positions, 0)
        for medium in part.media:
            kind = self._capacity.modalities[medium.modality].placeholder.name
            first = used[kind]
            used[kind] += medium.tokens
            own = np.asarray(positions[kind][first : used[kind]], np.int32)
            self._media[medium.modality].append(PlacedMedium(medium.array, own))
        for name, amount in part.use.items():
            self._use[name] += amount
        self._dropped += part.dropped

    def _add_items(self, items: Sequence[Item]) -> dict[str, list[int]]:
        """Append items, and return the positions of all placeholders, by the name of their `Placeholder`."""
        positions: dict[str, list[int]] = {}
        for item in items:
            if isinstance(item, str):
                new = self._tokenizer.encode(item)
            else:
                start, token, end = (
                    self._tokenizer.placeholder(name) for name in (f"{item.kind}_start", item.kind, f"{item.kind}_end")
                )
                first = len(self._ids) + 1
                positions.setdefault(item.kind, []).extend(range(first, first + item.count))
                new = [start, *[token] * item.count, end]
            self._ids += new
            self._said += [False] * len(new)
        return positions

    def sample(self, where: str) -> OmniSample:
        return OmniSample(
            ids=np.asarray(self._ids, np.int32),
            said=np.asarray(self._said, bool),
            media={name: tuple(media) for name, media in self._media.items()},
            use=RowUse(tokens=len(self._ids) - self._dropped, before_pruning=len(self._ids), media=self._use),
            where=where,
        )
