"""Declare a modality: all that the data pipeline, the config and generation need to know of a kind of media.

To add one, write a class of it in a file of this folder and list it in `hetjax.data.modalities`; a program of one's own
calls `hetjax.data.modalities.register` instead.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Container, Mapping, Sequence
from typing import ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int

from hetjax.data.modalities.config import ProcessorConfig
from hetjax.data.modalities.prompt_order import Item
from hetjax.errors import ConfigError
from hetjax.graph import Edge

Raw = TypeVar("Raw")
"""A medium of one modality as it was read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placeholder:
    """The tokens of a prompt that stand for those of one encoder, and the ports that connect it.

    Attributes:
        name: the language model takes the ports `NAME_tokens`, from the encoder, and `NAME_positions`, from the batch.
        module: the encoder's name in the graph; it gives the port "tokens".
        token: text of the token that is repeated once for each encoder token.
        start: text of the token before them.
        end: text of the token behind them.
        id_keys: keys of a checkpoint's config.json that give the id of `token`.
        spellings: other texts of the three, as tokenizers of other models have them; an empty one is left out.
    """

    name: str
    module: str
    token: str
    start: str
    end: str
    id_keys: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str, str], ...] = ()

    @property
    def texts(self) -> dict[str, str]:
        """Return the three texts by the names that a tokenizer has for them: NAME, NAME_start and NAME_end."""
        return self._named(self.token, self.start, self.end)

    def texts_in(self, tokens: Container[str]) -> dict[str, str]:
        """Return the three texts as these tokens have them: of the first spelling that is whole, else as `texts`."""
        whole = (each for each in self.spellings if all(text in tokens for text in each if text))
        return self.texts if self.start in tokens else self._named(*next(whole, (self.token, self.start, self.end)))

    def _named(self, token: str, start: str, end: str) -> dict[str, str]:
        return {self.name: token, f"{self.name}_start": start, f"{self.name}_end": end}


class Resource(NamedTuple):
    """A quantity of which a row of the batch has a fixed amount.

    Attributes:
        name: its key in `RowUse.media`.
        words: what an error calls it.
        setting: the setting that raises it, e.g. "processor.clips".
    """

    name: str
    words: str
    setting: str


class ArraySpec(NamedTuple):
    """Shape and dtype of one row of an array."""

    shape: tuple[int, ...]
    dtype: type


class Budget(NamedTuple):
    """Tokens that media share with the text of their sample: `context` in all, of which `taken` are in use."""

    context: int
    taken: int


class Medium(NamedTuple):
    """One array for an encoder.

    Attributes:
        modality: name of the modality whose `encoder_inputs` take it.
        array: its content, in the form that they take.
        tokens: placeholders that stand for it in the prompt.
    """

    modality: str
    array: np.ndarray
    tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptPart:
    """One medium of a message, ready for a prompt.

    Attributes:
        items: texts and placeholders in their order.
        media: arrays for encoders; those of one `Placeholder` in the order of its placeholders in `items`.
        use: amounts that it takes of a row, by the name of the `Resource`.
        dropped: placeholders that the model takes out of the sequence again.
    """

    items: Sequence[Item]
    media: Sequence[Medium]
    use: Mapping[str, int]
    dropped: int = 0


class EncoderInputs(NamedTuple):
    """The inputs of an encoder for one row of the batch.

    Attributes:
        arrays: by port, of the shapes that `Modality.shapes` gives.
        tokens: for each medium the numbers of its tokens among the `Modality.tokens` that the encoder makes.
    """

    arrays: dict[str, np.ndarray]
    tokens: Sequence[Int[np.ndarray, " _"]]


class Modality(abc.ABC, Generic[Raw]):
    """A kind of media, fitted to the settings of a processor and to an encoder.

    The class attributes and class methods describe the modality itself; an object belongs to one run.

    Class attributes:
        name: type of its parts in a message, its mark "<NAME>" in a text, and its list "NAMEs" in a line of a dataset.
        placeholder: its tokens in a prompt; modalities that share an encoder share it.
        resources: the amounts that it takes of a row; the first one is 0 where the settings take no media of this kind.
        suffixes: suffixes of the names of files that are taken for media of this kind where nothing else says it.
        shares_context: whether the size of its media depends on what is left of the context; it is prepared last.

    Attributes:
        capacity: amount of each of `resources` in a row.
        tokens: tokens that its encoder makes for a row, padding included.
        dropped: tokens that the model takes out of a row, where it prunes.
        prunes: whether it prunes; then those of its tokens that are left follow each other, from the first of its
            places on, and an item takes as many as its `amounts` call "kept".
        longest: the most of the first resource that an encoder's attention sees as one; None where a medium is no
            segment of a row.

    Args:
        config: the settings.
        encoder: config of the module `placeholder.module`, or None where the model has none.

    Raises ConfigError where the settings ask for what the encoder does not take.
    """

    name: ClassVar[str]
    placeholder: ClassVar[Placeholder]
    resources: ClassVar[tuple[Resource, ...]]
    suffixes: ClassVar[tuple[str, ...]] = ()
    shares_context: ClassVar[bool] = False

    capacity: Mapping[str, int]
    tokens: int
    dropped: int = 0
    prunes: bool = False
    longest: int | None = None

    @abc.abstractmethod
    def __init__(self, config: ProcessorConfig, encoder: object | None):
        """See the class."""

    @classmethod
    def accepts(cls, encoder: object | None) -> bool:
        """Return whether an encoder of this config, or none, takes media of this kind."""
        return encoder is not None

    @classmethod
    def for_encoder(cls, encoder: object | None) -> type[Modality]:
        """Return the class that prepares media of this kind for an encoder of this config: this one, or another."""
        del encoder
        return cls

    @classmethod
    def edges(cls, encoder: object) -> tuple[Edge, ...]:
        """Return the edges from the encoder into the language model: its tokens, and those of each depth it makes."""
        module, name = cls.placeholder.module, cls.placeholder.name
        depths = getattr(encoder, "deepstack_ports", ())
        return (
            Edge(f"{module}.tokens", f"llm.{name}_tokens"),
            *(Edge(f"{module}.{port}", f"llm.{port}") for port in depths),
        )

    @classmethod
    def contains(cls, config: ProcessorConfig) -> tuple[str, ...]:
        """Return the names of the modalities of which a medium of this kind may hold arrays: its own, or more."""
        del config
        return (cls.name,)

    @classmethod
    @abc.abstractmethod
    def sized(
        cls, config: ProcessorConfig, amounts: Mapping[str, int], arrays: Sequence[np.ndarray] = ()
    ) -> ProcessorConfig:
        """Return the settings with these amounts of `resources` in a row, just enough for `arrays` if given."""

    @abc.abstractmethod
    def read(self, value: object) -> Raw:
        """Read a medium, given as a path or as an array. Raises DataError."""

    @abc.abstractmethod
    def prepare(self, media: Sequence[Raw], budget: Budget) -> list[PromptPart]:
        """Prepare all media of this kind in a sample, one part each. Raises DataError."""

    def items(self, array: np.ndarray) -> Sequence[np.ndarray]:
        """Return the equal parts of a medium that an encoder computes each for itself, in the order of their tokens."""
        return (array,)

    def token_grids(self, array: np.ndarray) -> Sequence[tuple[int, int]]:
        """Return (rows, columns) of the tokens of each of its `items`, for a language model that counts by them."""
        raise ConfigError(
            f"the language model counts the rows and columns of images, but modality '{self.name}' does not say which "
            "its tokens have; give it the method token_grids, or choose another language model"
        )

    def amounts(self, array: np.ndarray) -> Mapping[str, int]:
        """Return what an item takes of each of `resources`; only `processor.balance` asks, for each item by itself."""
        raise self.no_balance()

    def no_balance(self) -> ConfigError:
        """Return the error of a modality that does not say what its items take and cost."""
        return ConfigError(
            f"processor.balance spreads media over the shards of an encoder, but modality '{self.name}' does not say "
            "what an item takes of a row; give it the methods amounts and cost, or set balance to false"
        )

    def cost(self, array: np.ndarray) -> float:
        """Return the multiplications that an item costs the encoder, to compare items with each other."""
        return float(sum(self.amounts(array).values()))

    def moved(self, array: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return an array of a medium, changed at random for one turn of training (`processor.max_shift`)."""
        del random
        return array

    @abc.abstractmethod
    def shapes(self) -> dict[str, ArraySpec]:
        """Return shape and dtype of one row of every array that `encoder_inputs` makes, by port."""

    @abc.abstractmethod
    def encoder_inputs(self, arrays: Sequence[np.ndarray]) -> EncoderInputs:
        """Return the encoder's inputs for all media in a row of the batch, which fit into it."""
