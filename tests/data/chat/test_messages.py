import json

import pytest

from hetjax.data.chat import parse_line, parse_messages
from hetjax.errors import DataError


def kinds(chat):
    return [[(part.kind, str(part.value)) for part in turn.parts] for turn in chat.turns]


def test_parts_and_marks_say_the_same(tmp_path):
    parts = [{"type": "text", "text": "a "}, {"type": "image", "image": "x.png"}, {"type": "text", "text": " b"}]
    answer = {"role": "assistant", "content": "<image> is text here"}
    by_parts = {"messages": [{"role": "user", "content": parts}, answer]}
    by_marks = {"messages": [{"role": "user", "content": "a <image> b"}, answer], "images": ["x.png"]}
    chats = [parse_line(json.dumps(record), where="f:1", folder=tmp_path) for record in (by_parts, by_marks)]
    assert kinds(chats[0]) == kinds(chats[1])
    assert kinds(chats[0])[0][1] == ("image", str(tmp_path / "x.png"))
    assert kinds(chats[0])[1] == [("text", "<image> is text here")]


def test_files_without_marks_stand_before_the_first_user_text():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    chat = parse_messages(messages, files={"image": ["a"], "audio": ["b"], "video": []})
    assert kinds(chat) == [[("text", "s")], [("image", "a"), ("audio", "b"), ("text", "q")]]


def test_the_question_and_its_answer():
    asked, answer = parse_messages(
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "more"},
        ]
    ).asked()
    assert kinds(asked) == [[("text", "q")]] and answer == "ab"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "must be a JSON object"),
        ({}, "at least one message"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "'role' is one of"),
        ({"messages": [{"role": "user", "content": 3}]}, "a text or a list of parts"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "'type' is one of text, image"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "a path or an array under the key 'video'"),
        ({"messages": [{"role": "user", "content": "<image>"}], "images": ["a", "b"]}, "1 marks <image>.*2 files"),
        ({"messages": [{"role": "user", "content": "x"}], "audios": "a.wav"}, "'audios' must be a list"),
        ({"messages": [{"role": "assistant", "content": "x"}], "audios": ["a.wav"]}, "no user message to put them in"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "image", "image": "a"}]}]},
            "an assistant's message is text",
        ),
    ],
)
def test_errors_open_with_the_line(tmp_path, record, message):
    with pytest.raises(DataError, match=f"^f:7: .*{message}"):
        parse_line(json.dumps(record), where="f:7", folder=tmp_path)
