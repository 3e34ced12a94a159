"""Tokenize a whole text of which some special tokens are text that a person wrote."""

# L tokens of the text

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tokenizers
from jaxtyping import Float32, Int64
from tokenizers import AddedToken

from hetjax.data.chat.marks import ALIAS
from hetjax.errors import DataError

_FIRST = 0x100000  # of the last plane of Unicode, which is for private use


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedText:
    """The ids of a text; token t stands for its characters from starts[t] to stops[t]."""

    ids: Int64[np.ndarray, " L"]
    starts: Int64[np.ndarray, " L"]
    stops: Int64[np.ndarray, " L"]

    @staticmethod
    def of(text: str, model: tokenizers.Tokenizer) -> EncodedText:
        """Return what a tokenizer makes of a text. Raises DataError where it cannot."""
        try:
            encoding = model.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises a bare Exception, e.g. for a letter that it does not know
            raise DataError(f"the tokenizer does not take the text: {error}") from error
        offsets = np.asarray(encoding.offsets, np.int64).reshape(-1, 2)
        return EncodedText(ids=np.asarray(encoding.ids, np.int64), starts=offsets[:, 0], stops=offsets[:, 1])

    def weights(self, spans: Iterable[tuple[int, int, float]]) -> Float32[np.ndarray, " L"]:
        """Return the weight of each token: that of the span (start, stop, weight) that it has a character of, else 0.

        A token with characters of two spans has the larger weight. One without any character, such as the space that
        some tokenizers put before a word, belongs to the character that follows.
        """
        weights = np.zeros(len(self.ids), np.float32)
        ends = np.maximum(self.stops, self.starts + 1)
        for start, stop, weight in spans:
            inside = (self.starts < stop) & (ends > start)
            weights[inside] = np.maximum(weights[inside], weight)
        return weights

    def at(self, start: int, stop: int) -> Int64[np.ndarray, " _"]:
        """Return the numbers of the tokens that begin in [start, stop)."""
        return np.flatnonzero((self.starts >= start) & (self.starts < stop))


class AliasedTokenizer:
    """Tokenizes a text in which each token of a list, or its text alone, may stand.

    A copy of the tokenizer has a text of two characters that no other text has, the alias, in the place of each such
    token: in the text, the token is written by its alias, and its own text is nothing special any more.

    Args:
        model: the tokenizer.
        ids: the id of each token by its text.
    """

    def __init__(self, model: tokenizers.Tokenizer, ids: Mapping[str, int]):
        added = {token.content: token for token in model.get_added_tokens_decoder().values()}
        spec = json.loads(model.to_str())
        for token in spec["added_tokens"]:
            token["special"] = token["special"] or token["content"] in ids
        self._model = tokenizers.Tokenizer.from_str(json.dumps(spec))
        self._model.encode_special_tokens = True  # which makes text of them
        self._aliases = {text: ALIAS + chr(_FIRST + number) for number, text in enumerate(ids)}
        self._model.add_tokens([_alias(added.get(text), alias) for text, alias in self._aliases.items()])
        self._ids = {self._model.token_to_id(alias): ids[text] for text, alias in self._aliases.items()}
        self._pattern = re.compile("|".join(map(re.escape, sorted(ids, key=len, reverse=True))))

    def encode(self, text: str, literal: Sequence[tuple[int, int]]) -> EncodedText:
        """Return the ids of a text; tokens are those whose text stands in it outside of the spans of `literal`."""
        kept = dict(literal)
        pieces: list[str] = []
        origin: list[int] = []  # of each character that is tokenized, its place in the text
        position = 0
        while position < len(text):
            found = self._pattern.search(text, position)
            start = found.start() if found else len(text)
            pieces.append(text[position:start])
            origin.extend(range(position, start))
            if found is None:
                break
            stop = kept.get(start, found.end())
            if start in kept:
                pieces.append(text[start:stop])
                origin.extend(range(start, stop))
            else:
                pieces.append(self._aliases[found.group()])
                origin.extend([start, stop - 1])
            position = stop
        origin.append(len(text))
        encoded = EncodedText.of("".join(pieces), self._model)
        places = np.asarray(origin, np.int64)
        widths = encoded.stops > encoded.starts
        stops = np.where(widths, places[np.maximum(encoded.stops - 1, 0)] + 1, places[encoded.starts])
        ids = np.asarray([self._ids.get(token, token) for token in encoded.ids.tolist()], np.int64)
        return EncodedText(ids=ids, starts=places[encoded.starts], stops=stops)


def _alias(token: AddedToken | None, alias: str) -> AddedToken:
    """Return an added token that reads as an alias and splits a text as `token` does."""
    if token is None:
        return AddedToken(alias, normalized=False)
    return AddedToken(
        alias,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
    )
