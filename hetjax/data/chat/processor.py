"""Process conversations with media to samples: ids with placeholders, and the arrays that these stand for."""

from __future__ import annotations

import copy
import functools
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Float32, Int32

from hetjax.data.chat.chat_rendering import render_chat
from hetjax.data.chat.counted import Span
from hetjax.data.chat.expanded_text import ExpandedText, expand
from hetjax.data.chat.messages import Chat, Part
from hetjax.data.chat.pretokenized import Pretokenized, StoredMedium, checksum, position_runs, runs_of
from hetjax.data.chat.template import ChatTemplate
from hetjax.data.chat.tokenizer import Tokenizer
from hetjax.data.chat.whole_text import EncodedText
from hetjax.data.modalities.config import ProcessorConfig
from hetjax.data.modalities.modality import Budget, Modality, PromptPart
from hetjax.data.modalities.prompt_order import Item, Tokens
from hetjax.data.rows.balanced_rows import EncoderRows
from hetjax.data.rows.row_capacity import RowCapacity
from hetjax.data.rows.sample import PlacedMedium, RowUse, Sample
from hetjax.errors import DataError

# L ids of a sample


class ProcessedChat(NamedTuple):
    """A chat as a text and as the sample that is made of it.

    Attributes:
        text: the text, with placeholders; None of a sample that came as tokens (`Processor.spelled`).
        sample: what is made of it.
        raw: its media as they were read.
        parts: its media as they stand in the prompt.
        positions: of each medium the positions of its placeholders among the ids, by the name of their `Placeholder`.
        text_tokens: tokens of the text without its media, where one of them shares the context with it, else 0; all
            tokens where there are no media.
    """

    text: ExpandedText | None
    sample: Sample
    raw: Sequence[object]
    parts: Sequence[PromptPart]
    positions: Sequence[Mapping[str, Sequence[int]]]
    text_tokens: int


class Processor:
    """Makes samples of chats; `hetjax.data.chat.collate` makes batches of samples.

    Args:
        config: sizes and options.
        tokenizer: text to ids.
        template: turns to text.
        seq_len: positions of the language model's sequence, after pruning.
        encoders: config of each encoder of the model, by the name of its module.
        ending: what ends an answer in training where the template writes no end mark (`ending_of`).

    Attributes:
        capacity: of a row of the batch.
        encoder_rows: the rows that each shard of an encoder takes, by module, where training balances media; else none.

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
        ending: str = "",
    ):
        self.ending = ending
        self.config, self.tokenizer, self.template = config, tokenizer, template
        self.encoders = encoders
        self.encoder_rows: EncoderRows = {}
        self.capacity = RowCapacity.of(config, seq_len, encoders)
        for placeholder in self.capacity.encoders:
            for name in placeholder.texts:
                if tokenizer.texts[name]:
                    tokenizer.placeholder(name)

    def balancing(self, encoder_rows: EncoderRows) -> Self:
        """Return a processor whose batches for training spread media over these rows of the encoders.

        Raises ConfigError for a modality that does not say what its media take and cost.
        """
        for modality in self.capacity.modalities.values():
            if self.capacity.takes(modality) and type(modality).amounts is Modality.amounts:
                raise modality.no_balance()
        other = copy.copy(self)
        other.encoder_rows = {
            placeholder.module: encoder_rows[placeholder.module] for placeholder in self.capacity.encoders
        }
        return other

    def sample(self, chat: Chat, *, training: bool = False) -> Sample:
        """Read the media of a chat and fuse them with its text; in `training` with what an assistant says, else
        asking for the next answer.

        Raises:
            DataError: a file cannot be read, the template refuses the chat, or it does not fit into a row.
        """
        return self.process(chat, training=training).sample

    def process(self, chat: Chat, *, training: bool) -> ProcessedChat:
        """Return the sample of a chat with the text that it was made of. Raises as `sample`."""
        if chat.pretokenized is not None:
            return self._restored(chat, chat.pretokenized, training=training)
        rendered = render_chat(
            chat,
            self.template,
            specials=self.tokenizer.specials,
            training=training,
            ending=self.ending,
            **self.config.template_options,
        )
        raw = [self._read(part, chat.where) for part in chat.media]
        texts, nothing = self.tokenizer.texts, [()] * len(raw)
        shared = any(self.capacity.modalities[part.kind].shares_context for part in chat.media)
        taken = len(self._encode(expand(rendered, nothing, texts), chat.where).ids) if shared else 0
        prepared = self._prepare(chat, raw, taken)
        parts = [prepared[number] for number in range(len(raw))]
        text = expand(rendered, [part.items for part in parts], texts)
        encoded = self._encode(text, chat.where)
        positions = [self._positions(chat, text, encoded, number) for number in range(len(raw))]
        sample = self._sample(chat, encoded.ids.astype(np.int32), encoded.weights(text.counted), positions, parts)
        return ProcessedChat(text, sample, raw, parts, positions, taken if raw else len(sample.ids))

    def pretokenized(self, chat: Chat, made: ProcessedChat, names: Sequence[str]) -> Pretokenized:
        """Return what is stored of a processed chat, whose media are called by these names."""
        media = []
        for number, (part, name) in enumerate(zip(chat.media, names, strict=True)):
            runs = [run for kind, own in made.positions[number].items() for run in position_runs(kind, own)]
            media.append(StoredMedium(part.kind, name, tuple(runs)))
        return Pretokenized(
            ids=made.sample.ids,
            counted=runs_of(made.sample.weights),
            media=tuple(media),
            text_tokens=made.text_tokens,
            made_by=self.made_by,
        )

    @functools.cached_property
    def made_by(self) -> Mapping[str, str]:
        """Return checksums of what decides about the tokens of a chat, without the capacity of a row."""
        config, tokenizer = self.config, self.tokenizer
        encoders = {
            name: [getattr(encoder, each, None) for each in ("image_rows", "video_rows", "image_size", "tubelet")]
            for name, encoder in sorted(self.encoders.items())
        }
        rates = {name: getattr(each, "video_pruning_rate", 0) for name, each in sorted(self.encoders.items())}
        context = config.context or self.capacity.most.tokens
        settings = (config.resolution, config.frames, config.clip_seconds, config.audio_in_video, config.video_prefix)
        return {
            "tokenizer": tokenizer.checksum(),
            "template": checksum(self.template.checksum(), self.ending, sorted(config.template_options.items())),
            "media": checksum(*settings, sorted(config.others.items()), context, encoders, rates),
        }

    def _restored(self, chat: Chat, stored: Pretokenized, *, training: bool) -> ProcessedChat:
        """Return the sample that was stored, with its media read again."""
        if not training:
            raise DataError(f"{chat.where}: the sample is tokenized, and no question; evaluate on messages")
        try:
            stored.check_made_by(self.made_by)
        except DataError as error:
            raise DataError(f"{chat.where}: {error}") from error
        self._check_places(chat.where, stored)
        raw = [self._read(part, chat.where) for part in chat.media]
        prepared = self._prepare(chat, raw, stored.text_tokens)
        parts = [prepared[number] for number in range(len(raw))]
        positions = [medium.positions() for medium in stored.media]
        for part, found, medium in zip(parts, positions, stored.media, strict=True):
            wanted: Counter[str] = Counter()
            for each in part.media:
                wanted[self.capacity.modalities[each.modality].placeholder.name] += each.tokens
            has = Counter({kind: len(own) for kind, own in found.items()})
            if wanted != has:
                raise DataError(
                    f"{chat.where}: '{medium.name}' takes {wanted.total()} placeholders {dict(wanted)}, and the sample "
                    f"has {has.total()} {dict(has)}; convert the data anew (hetjax data convert)"
                )
        sample = self._sample(chat, stored.ids, stored.weights(), positions, parts)
        return ProcessedChat(None, sample, raw, parts, positions, stored.text_tokens)

    def _check_places(self, where: str, stored: Pretokenized) -> None:
        """Raise DataError unless all runs of a stored sample lie within it, and placeholders stand where it says."""
        count = len(stored.ids)
        wrong = [f"counts {start} to {stop}" for start, stop, _ in stored.counted if not 0 <= start < stop <= count]
        for medium in stored.media:
            for kind, first, length in medium.placeholders:
                inside = 0 <= first < first + length <= count
                if not inside or np.any(stored.ids[first : first + length] != self.tokenizer.placeholder(kind)):
                    wrong.append(f"says that {length} placeholders of '{medium.name}' begin at {first}")
        if wrong:
            raise DataError(
                f"{where}: the sample has {count} tokens, and {wrong[0]}, which is not so; convert the data anew "
                "(hetjax data convert)"
            )

    def spelled(self, stored: Pretokenized) -> ExpandedText:
        """Return the text of tokens, with what the loss counts."""
        borders = sorted({0, len(stored.ids), *(each for start, stop, _ in stored.counted for each in (start, stop))})
        pieces, spans, weights = [], [], {start: weight for start, _, weight in stored.counted}
        for start, stop in itertools.pairwise(borders):
            begin = sum(map(len, pieces))
            pieces.append(self.tokenizer.spell(stored.ids[start:stop].tolist()))
            if start in weights:
                spans.append(Span(begin, begin + len(pieces[-1]), weights[start]))
        return ExpandedText(text="".join(pieces), counted=tuple(spans), literal=(), placeholders=())

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

    def _sample(
        self,
        chat: Chat,
        ids: Int32[np.ndarray, " L"],
        weights: Float32[np.ndarray, " L"],
        positions: Sequence[Mapping[str, Sequence[int]]],
        parts: Sequence[PromptPart],
    ) -> Sample:
        """Return the sample of a text, and give each array of the media the `positions` of its own placeholders."""
        media: dict[str, list[PlacedMedium]] = {name: [] for name in self.capacity.modalities}
        use = dict.fromkeys(self.capacity.most.media, 0)
        for own, part in zip(positions, parts, strict=True):
            used = dict.fromkeys(own, 0)
            for medium in part.media:
                kind = self.capacity.modalities[medium.modality].placeholder.name
                first = used[kind]
                used[kind] += medium.tokens
                media[medium.modality].append(
                    PlacedMedium(medium.array, np.asarray(own[kind][first : used[kind]], np.int32))
                )
            for name, amount in part.use.items():
                use[name] += amount
        dropped = sum(part.dropped for part in parts)
        sample = Sample(
            ids=ids,
            weights=weights,
            media={name: tuple(each) for name, each in media.items()},
            use=RowUse(tokens=len(ids) - dropped, before_pruning=len(ids), media=use),
            where=chat.where,
        )
        self.capacity.check(sample.use, chat.where)
        return sample

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
