"""Parse a line of a dataset as a conversation with images, and render it as a fused token sequence.

A line is a JSON object
`{"messages": [{"role": "user", "content": "..."}, ...], "images": ["x.png", ...]}`,
with image paths relative to the folder of the JSONL file. The fused sequence reads
`<bos> <user> text <assistant> answer <eos> <user> text ...`; each image takes `tokens_per_image` ids
`<image>` where its mark "<image>" stands in a user or system message. Without any mark, all images
come before the text of the first user message. An assistant message is words alone: there "<image>"
is seven characters.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32

from hetjax.data.chat.message_keys import check_sample_keys
from hetjax.data.media import DataUri, located
from hetjax.data.tokenizer import Tokenizer
from hetjax.errors import DataError

# S fused sequence (seq_len) · N encoder tokens of the sample's images

IMAGE_MARK = "<image>"
ROLES = ("user", "assistant", "system")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """The message of one role."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversation:
    """The messages and image files of one line; `where` ("file:line") opens every error about it."""

    messages: tuple[Message, ...]
    images: tuple[Path | DataUri, ...]
    where: str

    @property
    def files(self) -> tuple[Path, ...]:
        """Return all files that the conversation shows."""
        return tuple(image for image in self.images if isinstance(image, Path))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A conversation as training arrays.

    `labels[t]` is the token after `tokens[t]` (pad at the end). `loss_weights[t]` is 1 where that label
    is a word of an assistant message or the eos that ends it, else 0. `image_positions` holds the
    position of every encoder token in the sequence, image by image.
    """

    tokens: Int32[np.ndarray, S]
    labels: Int32[np.ndarray, S]
    loss_weights: Float32[np.ndarray, S]
    image_positions: Int32[np.ndarray, N]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A conversation up to and including the tag of its last assistant message.

    `tokens` is padded to S; its first `length` ids are the prompt. `answer` is the text expected next.
    """

    tokens: Int32[np.ndarray, S]
    image_positions: Int32[np.ndarray, N]
    length: int
    answer: str


def parse_conversation(line: str | bytes, *, where: str, folder: Path, ignore: Collection[str] = ()) -> Conversation:
    """Read one JSONL line; keys of `ignore` are left out, any other than "messages" and "images" is an error.

    Raises:
        DataError: not such an object, or the number of marks and images differ; the message opens with `where`.
    """
    try:
        record = line if isinstance(line, dict) else json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a line of JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a line must be a JSON object with the key 'messages', not {type(record).__name__}")
    check_sample_keys(record, ("messages", "images"), where, ignore)
    messages = _messages(record.get("messages"), where, ignore)
    images = [] if "images" in ignore or record.get("images") is None else record["images"]
    if not isinstance(images, list) or not all(isinstance(image, str) and _is_text(image) for image in images):
        raise DataError(f"{where}: 'images' must be a list of file names, not {images!r}")
    conversation = Conversation(
        messages=messages, images=tuple(located(image, folder) for image in images), where=where
    )
    _check_marks(conversation)
    return conversation


def render(conversation: Conversation, tokenizer: Tokenizer, tokens_per_image: int, seq_len: int) -> Sample:
    """Return the arrays that a conversation trains with.

    Raises:
        DataError: it is longer than `seq_len`.
    """
    tokens, is_answer, positions = _fuse(conversation.messages, conversation, tokenizer, tokens_per_image)
    _check_length(len(tokens), conversation, tokens_per_image, seq_len)
    loss_weights = np.zeros(seq_len, np.float32)
    loss_weights[: len(tokens) - 1] = is_answer[1:]
    return Sample(
        tokens=_padded(tokens, seq_len, tokenizer.pad),
        labels=_padded(tokens[1:], seq_len, tokenizer.pad),
        loss_weights=loss_weights,
        image_positions=np.asarray(positions, np.int32),
    )


def render_prompt(conversation: Conversation, tokenizer: Tokenizer, tokens_per_image: int, seq_len: int) -> Prompt:
    """Return the prompt that asks for a conversation's last assistant message.

    Raises:
        DataError: prompt, answer and the final eos together are longer than `seq_len`.
    """
    last = max(i for i, message in enumerate(conversation.messages) if message.role == "assistant")
    asked, answer = conversation.messages[:last], conversation.messages[last].content
    tokens, _, positions = _fuse(asked, conversation, tokenizer, tokens_per_image)
    tokens.append(tokenizer.assistant)
    _check_length(len(tokens) + len(tokenizer.encode(answer)) + 1, conversation, tokens_per_image, seq_len)
    return Prompt(
        tokens=_padded(tokens, seq_len, tokenizer.pad),
        image_positions=np.asarray(positions, np.int32),
        length=len(tokens),
        answer=answer,
    )


def _fuse(
    messages: tuple[Message, ...], conversation: Conversation, tokenizer: Tokenizer, tokens_per_image: int
) -> tuple[list[int], list[bool], list[int]]:
    """Return the ids of `messages`, which of them an assistant says, and the positions of the encoder tokens."""
    tags = {"user": tokenizer.user, "assistant": tokenizer.assistant, "system": tokenizer.system}
    images_ahead = 0 if any(map(_marks, conversation.messages)) else len(conversation.images)
    tokens, is_answer, positions = [tokenizer.bos], [False], []

    def place_images(count: int) -> None:
        positions.extend(range(len(tokens), len(tokens) + count * tokens_per_image))
        tokens.extend([tokenizer.image] * (count * tokens_per_image))

    for message in messages:
        tokens.append(tags[message.role])
        if message.role == "assistant":
            is_answer += [False] * (len(tokens) - len(is_answer))
            tokens += [*tokenizer.encode(message.content), tokenizer.eos]
            is_answer += [True] * (len(tokens) - len(is_answer))
            continue
        if message.role == "user" and images_ahead:
            place_images(images_ahead)
            images_ahead = 0
        for i, text in enumerate(message.content.split(IMAGE_MARK)):
            if i:
                place_images(1)
            tokens += tokenizer.encode(text)
    is_answer += [False] * (len(tokens) - len(is_answer))
    return tokens, is_answer, positions


def _messages(value: object, where: str, ignore: Collection[str]) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: 'messages' must be a list of at least one message, not {value!r}")
    messages = []
    for i, item in enumerate(value):
        role, content = (item.get("role"), item.get("content")) if isinstance(item, dict) else (None, None)
        if role not in ROLES:
            raise DataError(f"{where}: message {i} must be an object whose 'role' is one of {', '.join(ROLES)}")
        given = [key for key in item if item[key] is not None and item[key] != []]
        check_sample_keys(given, ("role", "content"), f"{where}: message {i}", ignore)
        if not isinstance(content, str) or not _is_text(content):
            raise DataError(f"{where}: the 'content' of message {i} must be text, not {content!r}")
        messages.append(Message(role=role, content=content))
    if not any(message.role == "assistant" for message in messages):
        raise DataError(f"{where}: no assistant message, so there is nothing to learn; add one or remove the line")
    return tuple(messages)


def _marks(message: Message) -> int:
    return 0 if message.role == "assistant" else message.content.count(IMAGE_MARK)


def _check_marks(conversation: Conversation) -> None:
    marks, images = sum(map(_marks, conversation.messages)), len(conversation.images)
    if marks and marks != images:
        raise DataError(
            f"{conversation.where}: {marks} marks {IMAGE_MARK} in the messages but {images} files in 'images'; "
            "give one mark an image, or no marks at all to put all images before the first user message"
        )
    if images and not marks and not any(message.role == "user" for message in conversation.messages):
        raise DataError(
            f"{conversation.where}: 0 marks {IMAGE_MARK} for {images} images, and no user message to put them in; "
            f"add a user message or {images} marks"
        )


def _check_length(length: int, conversation: Conversation, tokens_per_image: int, seq_len: int) -> None:
    if length > seq_len:
        raise DataError(
            f"{conversation.where}: the sample is {length} tokens long ({len(conversation.images)} images of "
            f"{tokens_per_image} tokens among them), more than seq_len {seq_len}; shorten it or raise seq_len"
        )


def _padded(ids: list[int], seq_len: int, pad: int) -> Int32[np.ndarray, S]:
    padded = np.full(seq_len, pad, np.int32)
    padded[: len(ids)] = ids
    return padded


def _is_text(value: str) -> bool:
    """Return False for the half surrogate pairs that JSON can spell and UTF-8 cannot."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
