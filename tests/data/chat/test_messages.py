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
        (
            {"messages": [{"role": "user", "content": "a <video>"}]},
            "1 marks <video>.*0 files in 'videos'.*list of parts",
        ),
        (
            {"messages": [{"role": "user", "content": "<image>"}], "image": "a"},
            "reads the key 'image'; 'images' is likely",
        ),
        ({"messages": [{"role": "user", "content": "x"}], "Video": []}, "'videos' is likely meant.*data.ignore_keys"),
        ({"conversations": []}, "reads the key 'conversations'; known keys are messages, tools, images"),
        ({"messages": [{"role": "user", "content": None}]}, "message 0: 'content' must be a text"),
        ({"messages": [{"role": "user", "content": "a\ud83d"}]}, r"half of a surrogate pair, \\ud83d"),
        ({"messages": [{"role": "user", "content": "x", "name": "\udc00"}]}, "message 0: a text has half of a"),
        ({"messages": [{"role": "user", "content": "a\ufdd3"}]}, r"the noncharacter U\+FDD3"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": "[{"}, "'tools' is a text, but not JSON"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": {"name": "f"}}, "'tools' must be a list of objects"),
        ({"messages": [{"role": "user", "content": "x"}], "audios": "a.wav"}, "'audios' must be a list"),
        ({"messages": [{"role": "assistant", "content": "x"}], "audios": ["a.wav"]}, "no user message to put them in"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "image", "image": "a"}]}]},
            "an assistant's message is text",
        ),
    ],
)
def test_errors_open_with_the_line(tmp_path, record, message):
    for line in (json.dumps(record), *([record] if isinstance(record, dict) else [])):
        with pytest.raises(DataError, match=f"^f:7: .*{message}"):
            parse_line(line, where="f:7", folder=tmp_path)


@pytest.mark.parametrize("line", ["{", b"\xff\xfe{", "[" * 100_000], ids=["cut", "no text", "deep"])
def test_what_is_no_json_is_an_error_that_opens_with_the_line(tmp_path, line):
    with pytest.raises(DataError, match=r"^f:7: not a line of JSON"):
        parse_line(line, where="f:7", folder=tmp_path)


def test_null_lists_are_empty_and_letters_of_a_mark_stay_in_parts(tmp_path):
    part = {"type": "text", "text": "What is <image>?"}
    record = {"messages": [{"role": "user", "content": [part]}], "images": None, "audios": None, "tools": None}
    chat = parse_line(json.dumps(record), where="f:1", folder=tmp_path)
    assert kinds(chat) == [[("text", "What is <image>?")]] and chat.tools is None


def test_keys_to_be_ignored_are_left_out(tmp_path):
    message = {"role": "user", "content": "x", "mood": "glad"}
    record = {"messages": [message], "id": 7, "source": "web", "images": "none"}
    chat = parse_line(json.dumps(record), where="f:1", folder=tmp_path, ignore=("id", "source", "mood", "images"))
    assert kinds(chat) == [[("text", "x")]] and not chat.turns[0].others


def test_an_answer_of_tool_calls_alone_is_not_asked_for():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    chat = parse_messages([{"role": "user", "content": "x"}, call], where="f:1")
    assert chat.turns[1].parts == () and not chat.turns[1].has_content
    with pytest.raises(DataError, match="f:1: the last assistant message has no content"):
        chat.asked()
