"""The same conversation in every schema gives the same messages."""

import base64
import json
from pathlib import Path

import pytest

from hetjax.data import Line
from hetjax.data.chat import parse_line
from hetjax.data.schemas import normalised
from hetjax.errors import DataError

FOLDER = Path("/data")
ASKED, ANSWERED = "What is it?", "A cat."


def turns(record, columns=None):
    """Roles and parts of a record's messages, and of each file its path or bytes."""
    line = normalised(Line(text=record, where="a.jsonl:3"), FOLDER, columns)
    chat = parse_line(line.text, where=line.where, folder=line.folder)
    return [
        (
            turn.role,
            [
                (part.kind, part.value if isinstance(part.value, str | Path) else part.value.open().read())
                for part in turn.parts
            ],
        )
        for turn in chat.turns
    ]


SHOWN = [
    ("user", [("image", FOLDER / "a.png"), ("text", ASKED)]),
    ("assistant", [("text", ANSWERED)]),
]
USER, ASSISTANT = {"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}
PARTS = [{"type": "image", "image": "a.png"}, {"type": "text", "text": ASKED}]

WITH_IMAGE = {
    "parts": {"messages": [{"role": "user", "content": PARTS}, ASSISTANT]},
    "a list without marks": {"messages": [USER, ASSISTANT], "images": ["a.png"]},
    "marks": {"messages": [{"role": "user", "content": f"<image>{ASKED}"}, ASSISTANT], "images": ["a.png"]},
    "empty parts as marks": {
        "messages": [{"role": "user", "content": [{"type": "image"}, PARTS[1]]}, ASSISTANT],
        "images": ["a.png"],
    },
    "a table's parts, every key in each": {
        "messages": [
            {
                "role": "user",
                "name": None,
                "content": [
                    {"type": "image", "text": None, "image": "a.png"},
                    {"type": "text", "text": ASKED, "image": None},
                ],
            },
            ASSISTANT,
        ],
        "tools": None,
        "images": None,
    },
    "OpenAI": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
                    {"type": "text", "text": ASKED},
                ],
            },
            ASSISTANT,
        ]
    },
    "OpenAI responses": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "input_image", "image_url": "a.png"}, {"type": "input_text", "text": ASKED}],
            },
            {"role": "assistant", "content": [{"type": "output_text", "text": ANSWERED}]},
        ]
    },
    "a path or url of Hugging Face's processors": {
        "messages": [{"role": "user", "content": [{"type": "image", "url": "a.png"}, PARTS[1]]}, ASSISTANT]
    },
    "a file's address": {"messages": [USER, ASSISTANT], "images": ["file:///data/a.png"]},
    "LLaVA": {
        "id": "000",
        "image": "a.png",
        "conversations": [{"from": "human", "value": f"<image>{ASKED}"}, {"from": "gpt", "value": ANSWERED}],
    },
    "ShareGPT": {
        "conversations": [{"from": "user", "value": ASKED}, {"from": "assistant", "value": ANSWERED}],
        "images": ["a.png"],
    },
    "ShareGPT with roles": {"conversations": [USER, ASSISTANT], "images": ["a.png"], "source": "web"},
    "Alpaca": {"instruction": ASKED, "input": "", "output": ANSWERED, "image": "a.png"},
    "prompt and completion": {"prompt": ASKED, "completion": ANSWERED, "images": ["a.png"]},
    "prompt and completion of messages": {"prompt": [USER], "completion": [ASSISTANT], "images": ["a.png"]},
    "question and answer": {"question": ASKED, "answer": ANSWERED, "images": ["a.png"]},
}


@pytest.mark.parametrize("schema", WITH_IMAGE)
def test_every_schema_gives_the_same_messages(schema):
    assert turns(WITH_IMAGE[schema]) == SHOWN


@pytest.mark.parametrize("schema", WITH_IMAGE)
def test_a_sample_in_the_dialect_stays_as_it_is(schema):
    line = normalised(Line(text=json.dumps(WITH_IMAGE[schema]).encode(), where="a:1"), FOLDER)
    again = normalised(Line(text=line.text, where="a:1"), FOLDER)
    assert again.text == line.text


def test_alpaca_has_input_history_and_system():
    record = {
        "system": "Be short.",
        "instruction": "Translate.",
        "input": "chat",
        "output": "cat",
        "history": [["Hello", "Hi"]],
    }
    assert turns(record) == [
        ("system", [("text", "Be short.")]),
        ("user", [("text", "Hello")]),
        ("assistant", [("text", "Hi")]),
        ("user", [("text", "Translate.\nchat")]),
        ("assistant", [("text", "cat")]),
    ]


def test_a_text_is_said_by_an_assistant_and_a_caption_in_answer_to_its_image():
    assert turns({"text": "Once."}) == [("assistant", [("text", "Once.")])]
    shown = [("user", [("image", FOLDER / "a.png")]), ("assistant", [("text", "A cat.")])]
    found = turns({"caption": "A cat.", "image": "a.png"})
    assert [(role, [part for part in parts if part != ("text", "")]) for role, parts in found] == shown


def test_turns_keep_their_flags_and_function_calls_become_tool_calls():
    record = {
        "conversations": [
            {"from": "human", "value": "Weather?", "weight": 0},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "Sunny.", "weight": 1},
        ],
        "system": "Help.",
        "tools": '[{"type": "function", "function": {"name": "weather"}}]',
    }
    made = normalised(Line(text=json.dumps(record).encode(), where="a:1"), FOLDER).text
    assert made == {
        "messages": [
            {"role": "system", "content": "Help."},
            {"role": "user", "content": "Weather?", "weight": 0},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}},
                ],
            },
            {"role": "tool", "content": "sunny"},
            {"role": "assistant", "content": "Sunny.", "weight": 1},
        ],
        "tools": [{"type": "function", "function": {"name": "weather"}}],
    }


def test_null_content_beside_tool_calls_stays():
    message = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    made = normalised(Line(text={"messages": [message], "images": None}, where="a:1"), FOLDER).text
    assert made == {"messages": [message]}


@pytest.mark.parametrize(
    ("columns", "record"),
    [
        ({"messages": "chat", "images": "picture"}, {"chat": [USER, ASSISTANT], "picture": "a.png", "other": 1}),
        ({"conversations": "messages", "image": "img"}, {"messages": [USER, ASSISTANT], "img": ["a.png"]}),
        (
            {"question": "q.en", "answer": "a", "images": ["one", "two"]},
            {"q": {"en": ASKED}, "a": ANSWERED, "one": "a.png"},
        ),
    ],
)
def test_columns_name_what_is_read_and_all_else_is_left(columns, record):
    assert turns(record, columns) == SHOWN


def test_media_come_as_bytes_of_tables_and_base64():
    data = b"\x89PNG"
    for image in (data, {"bytes": data, "path": "x.png"}, {"bytes": data, "path": None}, [data]):
        for record in (
            {"messages": [USER, ASSISTANT], "images": image},
            {"conversations": [USER, ASSISTANT], "image": image},
        ):
            (_, parts), _ = turns(record)
            assert parts == [("image", data), ("text", ASKED)]
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}
    (_, parts), _ = turns({"messages": [{"role": "user", "content": [part, PARTS[1]]}, ASSISTANT]})
    assert parts == [("audio", data), ("text", ASKED)]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"mesages": [USER]}, r"none of the keys .*did you mean 'messages'.*it has mesages"),
        ({"instruction": "a", "ouput": "b"}, r"no 'output' \(did you mean 'ouput'\?\)"),
        ({"conversations": [USER, ASSISTANT], "imagess": []}, r"reads the key 'imagess' \(did you mean 'images'"),
        ({"conversations": [{"from": "humann", "value": "a"}]}, r"\[0\] is from 'humann' \(did you mean 'human'"),
        ({"conversations": [{"from": "human", "valeu": "a"}]}, r"\[0\] has no 'value' \(did you mean 'valeu'"),
        ({"conversations": [USER, ASSISTANT], "image": 3}, "'image' must be the path of a file, its bytes"),
        ({"text": "A <image> of", "image": "a.png"}, "'text' has marks of media between its words"),
        ({"conversations": [USER, ASSISTANT], "tools": "{"}, "'tools' must be JSON"),
        ({"messages": [USER, ASSISTANT], "images": ["https://x.org/a.png"]}, "is not on this machine; download it"),
        ({"instruction": "a", "output": "b", "history": ["x"]}, "'history' must be a list of pairs"),
    ],
)  # fmt: skip
def test_what_no_schema_reads_is_an_error_with_the_likely_name(record, message):
    with pytest.raises(DataError, match=f"^a.jsonl:3: .*{message}"):
        turns(record)


def test_a_column_that_no_sample_has_is_named():
    with pytest.raises(DataError, match=r"none of the columns mesages \(did you mean 'messages'\?\)"):
        turns({"messages": [USER, ASSISTANT]}, {"messages": "mesages"})


def test_keys_to_ignore_are_left_out_of_any_schema():
    record = {"conversations": [USER, ASSISTANT], "image": "a.png", "quality": 3}
    with pytest.raises(DataError, match="nothing reads the key 'quality'"):
        turns(record)
    line = normalised(Line(text=record, where="a:1"), FOLDER, ignore=("quality",))
    assert set(line.text) == {"messages", "images"}
