"""Convert text to token ids for prompts with media: a checkpoint's tokenizer.json, or a built-in tokenizer of bytes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from hetjax.data.chat.pretokenized import checksum
from hetjax.data.chat.whole_text import AliasedTokenizer, EncodedText
from hetjax.data.modalities import placeholder_texts
from hetjax.errors import ConfigError, DataError

ENDS = ("<|im_end|>", "</s>", "<|endoftext|>", "<|eot_id|>", "<eos>")
"""Tokens that end an answer, the first that a tokenizer has, unless the checkpoint says which."""
THOUGHTS = ("<think>", "</think>")
"""Special tokens of some tokenizers that an assistant writes all the same."""
# The first ids are those of the released model, as far as they are known.
_BUILT_IN = {
    "<unk>": 0, "<s>": 1, "</s>": 2, "<|im_start|>": 10, "<|im_end|>": 11, "<think>": 12, "</think>": 13,
    "<image>": 18, "<img>": 21, "</img>": 22, "<so_embedding>": 27, "<so_start>": 28, "<so_end>": 29,
}  # fmt: skip
_BYTES_FROM = 32


class Tokenizer:
    """A `tokenizers` model and the ids that a prompt with media needs.

    Args:
        model: the tokenizer.
        ids: ids from the checkpoint's config for placeholders ("image", "image_start", ...) that the tokenizer does not
            know by their text.
        stop_ids: ids that end an answer, from the checkpoint; without, the first of ENDS that there is.
        pad: id of padding.

    Attributes:
        texts: the text of each placeholder, by what it is for ("image", "image_start", ...); empty for one that prompts
            for this tokenizer do without.
        placeholders: the id of each placeholder that there is.
        eos: the first of `stop_ids`.
        vocab_size: one more than the largest id.
        specials: the texts of special tokens.

    Raises ConfigError where nothing ends an answer.
    """

    def __init__(
        self,
        model: tokenizers.Tokenizer,
        *,
        ids: Mapping[str, int] | None = None,
        stop_ids: Iterable[int] = (),
        pad: int = 0,
    ):
        model.no_truncation()
        model.no_padding()
        model.encode_special_tokens = False
        # It adds tokens, which a chat has of its template, and may trim the white space of offsets.
        model.post_processor = None
        self._model = model
        self.texts = placeholder_texts(model.get_vocab(with_added_tokens=True))
        found = {name: model.token_to_id(text) for name, text in self.texts.items() if text}
        given = self._given = dict(ids or {})
        self.placeholders = {
            name: given.get(name) if token is None else token
            for name, token in found.items()
            if token is not None or name in given
        }
        ends = [model.token_to_id(text) for text in ENDS]
        self.stop_ids = tuple(stop_ids) or tuple([token for token in ends if token is not None][:1])
        if not self.stop_ids:
            raise ConfigError(f"the tokenizer has none of {', '.join(ENDS)}; say which ids end an answer (stop_ids)")
        self.eos, self.pad = self.stop_ids[0], pad
        added = model.get_added_tokens_decoder()
        special = {token: entry.content for token, entry in added.items() if entry.special}
        self.specials = frozenset(special.values())
        self.special_ids = frozenset({*special, *self.placeholders.values(), *self.stop_ids})
        words = model.get_vocab(with_added_tokens=True).values()
        self.vocab_size = max((*words, *self.placeholders.values())) + 1
        self._known = frozenset(words)
        atomic = {entry.content for entry in added.values()}
        self._unspelled = [self.texts[name] for name in self.placeholders if self.texts[name] not in atomic]

    @property
    def stop_texts(self) -> list[str]:
        """Return the texts of those of `stop_ids` that are special tokens."""
        texts = [self._model.id_to_token(token) for token in self.stop_ids]
        return [text for text in texts if text in self.specials]

    def to_json(self) -> str:
        """Return the text of its tokenizer.json."""
        return self._model.to_str(pretty=True)

    def stopping_at(self, more: Iterable[int]) -> Tokenizer:
        """Return the tokenizer with further ids that end an answer."""
        stops = dict.fromkeys((*self.stop_ids, *more))
        return Tokenizer(self._model, ids=self._given, stop_ids=stops, pad=self.pad)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; the text of a special token is that token."""
        return self._model.encode(text, add_special_tokens=False).ids

    def encode_whole(self, text: str, literal: Sequence[tuple[int, int]] = ()) -> EncodedText:
        """Return the ids of a rendered chat as a whole, and the characters that each stands for.

        The texts of special tokens and of placeholders are these tokens, but for those that `literal` spans.

        Raises:
            DataError: the tokenizer does not take the text.
        """
        if not literal and not any(each in text for each in self._unspelled):
            return EncodedText.of(text, self._model)
        return self._aliased.encode(text, literal)

    @functools.cached_property
    def _aliased(self) -> AliasedTokenizer:
        ids = {text: self._model.token_to_id(text) for text in sorted(self.specials)}
        return AliasedTokenizer(self._model, {**ids, **{self.texts[name]: i for name, i in self.placeholders.items()}})

    def spell(self, ids: Iterable[int]) -> str:
        """Return the text of ids, special ones and placeholders by their own texts."""
        names = {token: self.texts[name] for name, token in self.placeholders.items()}
        pieces = []
        for is_named, group in itertools.groupby(ids, key=names.__contains__):
            own = list(group)
            text = "".join(map(names.get, own)) if is_named else self._model.decode(own, skip_special_tokens=False)
            pieces.append(text)
        return "".join(pieces)

    def checksum(self) -> str:
        """Return a checksum of all that decides about the ids of a text."""
        return checksum(self._model.to_str(), sorted(self.placeholders.items()))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; special ids and ids outside the vocabulary stand for no text."""
        return self._model.decode([i for i in map(int, ids) if i in self._known], skip_special_tokens=True)

    def placeholder(self, name: str) -> int:
        """Return the id of a placeholder ("image", "image_start", ...). Raises ConfigError where there is none."""
        if name not in self.placeholders:
            raise ConfigError(
                f"the tokenizer has no token {self.texts[name]}, which a prompt with media needs; give a "
                f"tokenizer.json that has it, or its id ('{name}') from the checkpoint's config"
            )
        return self.placeholders[name]


def load_tokenizer(
    path: str | Path | None, *, ids: Mapping[str, int] | None = None, stop_ids: Iterable[int] = ()
) -> Tokenizer:
    """Load the tokenizer.json at `path` (or in that folder); for None the built-in one of bytes.

    Raises:
        DataError: the file is missing, unreadable or malformed.
    """
    if path is None:
        return Tokenizer(_byte_tokenizer(), ids=ids, stop_ids=stop_ids)
    path = Path(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        model = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"tokenizer file '{path}' cannot be read: {error}; give a readable tokenizer.json") from error
    except Exception as error:  # the library raises a bare Exception for every defect of a file
        raise DataError(
            f"tokenizer file '{path}' is malformed: {error}; give a tokenizer.json as saved by `tokenizers`"
        ) from error
    return Tokenizer(model, ids=ids, stop_ids=stop_ids)


def _byte_tokenizer() -> tokenizers.Tokenizer:
    """Make a tokenizer of the bytes of UTF-8, and special tokens below 32, at the known ids of the released model."""
    special = dict(_BUILT_IN)
    free = [i for i in range(_BYTES_FROM) if i not in _BUILT_IN.values()]
    for text in placeholder_texts().values():  # those of modalities that the released model does not have
        if text not in special:
            special[text] = free.pop()
    special |= {f"<unused_{i}>": i for i in free}
    letters = {letter: _BYTES_FROM + i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    # Without merges there is nothing to remember of a word, which is a whole text here.
    model = tokenizers.Tokenizer(models.BPE(vocab={**special, **letters}, merges=[], cache_capacity=0))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return model
