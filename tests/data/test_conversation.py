import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetjax.data import load_tokenizer, parse_conversation, render, render_prompt
from hetjax.errors import DataError

TOKENIZER = load_tokenizer(None)
# One character for each special id, none of which the texts below hold.
CHARACTERS = {TOKENIZER.pad: "·", TOKENIZER.bos: "^", TOKENIZER.eos: "$", TOKENIZER.image: "#"} | {
    TOKENIZER.user: "U",
    TOKENIZER.assistant: "A",
    TOKENIZER.system: "S",
}


def parse(messages, images=()):
    line = json.dumps(
        {"messages": [{"role": role, "content": text} for role, text in messages], "images": list(images)}
    )
    return parse_conversation(line, where="d.jsonl:7", folder=Path("d"))


def spelled(ids):
    return "".join(CHARACTERS.get(i, chr(i) if i < 256 else "?") for i in map(int, ids))


def test_two_turns_with_images_read_character_by_character():
    conversation = parse(
        [
            ("system", "be brief"),
            ("user", "<image>what? and <image>?"),
            ("assistant", "cat dog"),
            ("user", "sure?"),
            ("assistant", "yes"),
        ],
        ["a.png", "b.png"],
    )
    sample = render(conversation, TOKENIZER, tokens_per_image=3, seq_len=64)
    text = "^Sbe briefU###what? and ###?Acat dog$Usure?Ayes$"
    mask = "_" * text.index("cat") + "cat dog$" + "_" * len("Usure?A") + "yes$"
    assert spelled(sample.tokens) == text.ljust(64, "·")
    assert spelled(sample.labels) == text[1:].ljust(64, "·")
    # The label of a row is the next character, so that the weights are the mask one row earlier.
    expected = [float(c != "_") for c in mask[1:]] + [0.0] * (64 - len(mask) + 1)
    np.testing.assert_array_equal(sample.loss_weights, np.float32(expected))
    assert sample.image_positions.tolist() == [i for i, c in enumerate(text) if c == "#"]
    assert [image.as_posix() for image in conversation.images] == ["d/a.png", "d/b.png"]
    assert (sample.tokens.dtype, sample.labels.dtype, sample.loss_weights.dtype) == (np.int32, np.int32, np.float32)


@given(
    st.lists(
        st.tuples(st.sampled_from(["user", "system", "assistant"]), st.text("abc <>é", max_size=6)),
        min_size=1,
        max_size=5,
    )
)
def test_weighted_labels_are_the_answers_and_nothing_else(messages):
    messages = [*messages, ("assistant", "end")]
    sample = render(parse(messages), TOKENIZER, tokens_per_image=2, seq_len=128)
    learnt = sample.labels[sample.loss_weights == 1]
    expected = "".join(text + "\0" for role, text in messages if role == "assistant")
    assert bytes(0 if i == TOKENIZER.eos else i for i in learnt).decode() == expected
    assert set(sample.loss_weights.tolist()) <= {0.0, 1.0}


def test_images_without_marks_come_before_the_first_user_text():
    conversation = parse([("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r")], ["a.png", "b.png"])
    sample = render(conversation, TOKENIZER, tokens_per_image=2, seq_len=20)
    assert spelled(sample.tokens).rstrip("·") == "^SsU####qAa$Ur"


def test_a_mark_in_an_assistant_message_is_words():
    sample = render(parse([("user", "q"), ("assistant", "<image>")]), TOKENIZER, tokens_per_image=2, seq_len=20)
    assert spelled(sample.tokens).rstrip("·") == "^UqA<image>$"
    assert sample.image_positions.size == 0


@pytest.mark.parametrize(("content", "images"), [("<image> <image>", ["a"]), ("<image>", ["a", "b"]), ("<image>", [])])
def test_a_count_of_marks_unlike_that_of_images_names_line_counts_and_fix(content, images):
    with pytest.raises(DataError) as error:
        parse([("user", content), ("assistant", "x")], images)
    marks = content.count("<image>")
    assert str(error.value).startswith("d.jsonl:7: ")
    assert f"{marks} marks" in str(error.value)
    assert f"{len(images)} files" in str(error.value)
    assert "give one mark an image" in str(error.value)


def test_images_without_marks_and_without_a_user_message_are_refused():
    with pytest.raises(DataError, match=r"d.jsonl:7: 0 marks .* 1 images"):
        parse([("assistant", "x")], ["a"])


def test_a_sample_may_fill_the_sequence_and_not_pass_it():
    conversation = parse([("user", "abc"), ("assistant", "de")], ["a.png"])  # ^U####abcAde$ is 13 long
    assert spelled(render(conversation, TOKENIZER, 4, 13).tokens) == "^U####abcAde$"
    assert render(conversation, TOKENIZER, 4, 13).loss_weights.tolist() == [0.0] * 9 + [1.0] * 3 + [0.0]
    with pytest.raises(DataError, match=r"d.jsonl:7: the sample is 13 tokens .* seq_len 12"):
        render(conversation, TOKENIZER, 4, 12)


def test_a_prompt_stops_after_the_tag_of_the_last_answer():
    conversation = parse(
        [("user", "<image>q"), ("assistant", "one"), ("user", "r"), ("assistant", "two"), ("user", "<image>")],
        ["a.png", "b.png"],
    )
    prompt = render_prompt(conversation, TOKENIZER, tokens_per_image=2, seq_len=20)
    assert spelled(prompt.tokens) == "^U##qAone$UrA".ljust(20, "·")
    assert (prompt.length, prompt.answer, prompt.image_positions.tolist()) == (13, "two", [2, 3])


def test_a_prompt_leaves_capacity_for_its_answer():
    conversation = parse([("user", "abc"), ("assistant", "de")])  # ^UabcA, then de$
    assert render_prompt(conversation, TOKENIZER, 1, 9).length == 6
    with pytest.raises(DataError, match=r"9 tokens .* seq_len 8"):
        render_prompt(conversation, TOKENIZER, 1, 8)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a line of JSON"),
        (b"\xff\xfe{", "not a line of JSON"),
        ("[" * 100_000, "not a line of JSON"),
        ("[]", "JSON object"),
        ("{}", "'messages'"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": ["hi"]}', "message 0"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "user, assistant, system"),
        ('{"messages": [{"role": ["user"], "content": "x"}]}', "user, assistant, system"),
        ('{"messages": [{"role": "user", "content": 3}]}', "'content' of message 0"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "'content' of message 0"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no assistant message"),
        ('{"messages": [{"role": "assistant", "content": "x"}], "images": "a.png"}', "'images'"),
        ('{"messages": [{"role": "assistant", "content": "x"}], "image": "a.png"}', "'images' is likely meant"),
        (
            '{"messages": [{"role": "assistant", "content": "x", "weight": 0}]}',
            "message 0: nothing reads the key 'weight'",
        ),
        ('{"messages": [{"role": "assistant", "content": "x"}], "images": [1]}', "'images'"),
    ],
)
def test_a_malformed_line_is_a_data_error_that_opens_with_its_place(line, reason):
    with pytest.raises(DataError) as error:
        parse_conversation(line, where="d.jsonl:7", folder=Path("d"))
    assert str(error.value).startswith("d.jsonl:7: ")
    assert reason in str(error.value)


def test_keys_to_be_ignored_and_null_lists_are_left_out():
    line = (
        '{"messages": [{"role": "assistant", "content": "x", "mood": 1, "tool_calls": null}], "images": null, "id": 7}'
    )
    conversation = parse_conversation(line, where="d:1", folder=Path("d"), ignore=("mood", "id"))
    assert conversation.images == () and conversation.messages[0].content == "x"
