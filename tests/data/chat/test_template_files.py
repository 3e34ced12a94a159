"""Where a chat template comes from: a file, a folder, a list of several, or nowhere."""

import json

import pytest

from hetjax.data.chat import load_template
from hetjax.errors import DataError

TALK = [{"role": "user", "content": "x"}]


def shown(path, **options):
    return load_template(path).render(TALK, add_generation_prompt=False, **options).text


def test_a_file_is_a_template(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ eos_token }}é")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "other", "eos_token": "</s>"}))
    assert shown(tmp_path / "mine.jinja") == "</s>é"
    assert shown(tmp_path / "tokenizer_config.json") == shown(tmp_path) == "other"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "of the processor"}))
    assert shown(tmp_path) == "of the processor"


def test_what_does_not_exist_or_has_none_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"the chat template '.*absent.jinja' does not exist; give a .jinja file"):
        load_template(tmp_path / "absent.jinja")
    assert "<|im_start|>" in shown(tmp_path)  # a tokenizer's folder may have none
    with pytest.raises(DataError, match="has no chat template"):
        load_template(tmp_path, required=True)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer_config\.json is not a JSON object"):
        load_template(tmp_path)


def test_a_list_without_default_is_refused(tmp_path):
    named = [{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "with tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    with pytest.raises(DataError, match="the chat templates rag, tool_use, none of which is named 'default'"):
        load_template(tmp_path)
    named.append({"name": "default", "template": "without"})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = load_template(tmp_path)
    assert template.render(TALK, add_generation_prompt=False).text == "without"
    assert template.for_chat([{}]).render(TALK, add_generation_prompt=False).text == "with tools"


def test_special_tokens_of_a_file_of_their_own(tmp_path):
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<s>"}}))
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}|{{ tools }}|{{ documents is none }}")
    assert shown(tmp_path) == "<s>|None|True"  # as transformers hands them on
