"""Convert text to token ids and back, with the special ids that a multimodal conversation needs.

Two kinds: the built-in byte-level tokenizer, which needs no file and covers every text, and a Hugging
Face `tokenizers` JSON file. Neither ever turns text into a special id: only `conversation.py` places
those, so that a user who types "<eos>" or "<image>" writes characters.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import tokenizers

from hetjax.errors import DataError

SPECIALS = ("pad", "bos", "eos", "user", "assistant", "system", "image")


class Tokenizer(abc.ABC):
    """Converts text to ids and back.

    `pad` fills a sequence, `bos` opens it, `eos` ends an assistant message; `user`, `assistant` and
    `system` open a message of that role; `image` holds the place of one encoder token. `stop_ids` are those that
    end an answer: `eos` alone. Every id, special or not, is below `vocab_size`.
    """

    def __init__(self, specials: Mapping[str, int], vocab_size: int):
        self.pad, self.bos, self.eos, self.user, self.assistant, self.system, self.image = (
            specials[name] for name in SPECIALS
        )
        self.vocab_size = vocab_size
        self.special_ids = frozenset(specials.values())
        self.stop_ids = (self.eos,)

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; never a special id, whatever the text spells."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; special ids and ids outside the vocabulary stand for no text."""


class ByteTokenizer(Tokenizer):
    """A tokenizer of the 256 bytes of UTF-8, with the special ids from 256 on."""

    def __init__(self):
        super().__init__({name: 256 + i for i, name in enumerate(SPECIALS)}, vocab_size=256 + len(SPECIALS))

    def encode(self, text: str) -> list[int]:
        """Return the bytes of `text`."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the bytes among `ids`."""
        return bytes(i for i in map(int, ids) if 0 <= i < 256).decode("utf-8", errors="replace")


class FileTokenizer(Tokenizer):
    """A tokenizer from a `tokenizers` model; the special ids that its vocabulary lacks are appended after it."""

    def __init__(self, model: tokenizers.Tokenizer):
        model.no_truncation()
        model.no_padding()
        model.encode_special_tokens = True  # text that spells any special token of the file stays text
        self._model = model
        self._file_ids = frozenset(model.get_vocab(with_added_tokens=True).values())
        size = max(self._file_ids, default=-1) + 1
        specials = {}
        for name in SPECIALS:
            found = model.token_to_id(f"<{name}>")
            specials[name] = size if found is None else found
            size += found is None
        super().__init__(specials, vocab_size=size)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; never a special id, whatever the text spells."""
        ids = self._model.encode(text, add_special_tokens=False).ids
        if self.special_ids.isdisjoint(ids):
            return ids
        # The file lists a special token as an ordinary word and the text spells it: break it after its "<".
        return [i for part in re.split("(?<=<)", text) for i in self._model.encode(part, add_special_tokens=False).ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; special ids and ids outside the vocabulary stand for no text."""
        words = [i for i in map(int, ids) if i in self._file_ids and i not in self.special_ids]
        return self._model.decode(words, skip_special_tokens=True)


def load_tokenizer(path: str | None) -> Tokenizer:
    """Return the built-in byte-level tokenizer for None, else that of the `tokenizers` JSON file at `path`.

    The special tokens `<pad> <bos> <eos> <user> <assistant> <system> <image>` keep the ids that the
    file's vocabulary gives them; those it lacks are appended after it.

    Raises:
        DataError: the file is missing, unreadable or not a `tokenizers` JSON file.
    """
    if path is None:
        return ByteTokenizer()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"tokenizer file '{path}' cannot be read: {error}; give a readable tokenizer.json") from error
    try:
        model = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises a bare Exception for every defect of a file
        raise DataError(
            f"tokenizer file '{path}' is malformed: {error}; give a tokenizer.json as saved by `tokenizers`"
        ) from error
    return FileTokenizer(model)
