"""Random conversations, chat templates of released models, and what an assistant contributes by each of them."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

from hetjax.data.chat.template import DEFAULT_TEMPLATE

TEMPLATES = Path(__file__).parents[2] / "data/chat/templates"
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Name"}}},
        },
    }
]
HAND_MADE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} ||\n{% endfor %}"  # no prompt for an answer
)
WORDS = [
    "Hi",
    "the cat",
    "naïve",
    "漢字",
    "42",
    "🙂 ok",
    "x=1;",
    "\n",
    "  ",
    "\n\n",
    "a\tb",
    "Yes.",
    "None",
    "{}",
    "it's",
]


def text(rng: random.Random, *, least: int = 0) -> str:
    """A text, which may begin or end in white space, or have nothing else."""
    joined = "".join(rng.choice(WORDS) + rng.choice(["", " ", " "]) for _ in range(rng.randint(least, 5)))
    return joined if joined.strip() or not least else joined + "word"


def reasoning(rng: random.Random) -> str:
    return f"so {text(rng)} thus"


@dataclasses.dataclass(frozen=True)
class Case:
    """A template.

    `said` gives what an assistant contributes: of the messages and the number of one of its turns.
    """

    name: str
    source: str
    said: Callable[[list[dict], int], str]
    system: bool = True
    thinks: bool = False
    tools: int = 0  # calls that a message may have
    content_beside_calls: bool = True

    def conversation(self, rng: random.Random) -> dict:
        """Messages, and tools if any, as a line of a dataset has them."""
        messages = [{"role": "system", "content": text(rng, least=1)}] if self.system and rng.random() < 0.5 else []
        with_tools = self.tools and rng.random() < 0.5
        for turn in range(rng.randint(1, 3)):
            messages.append({"role": "user", "content": text(rng, least=1)})
            if with_tools and rng.random() < 0.6:
                messages += self._call(rng, turn)
            messages.append(self._answer(rng))
        return {"messages": messages, **({"tools": TOOLS} if with_tools else {})}

    def _answer(self, rng: random.Random) -> dict:
        message = {"role": "assistant", "content": text(rng)}
        if self.thinks and rng.random() < 0.6:
            thought = reasoning(rng)
            if rng.random() < 0.5:
                message["reasoning_content"] = thought
            else:
                message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
        return message

    def _call(self, rng: random.Random, turn: int) -> list[dict]:
        ids = [f"call{turn}{number}abcd" for number in range(rng.randint(1, self.tools))]
        calls = [
            {
                "id": each,
                "type": "function",
                "function": {"name": "get_weather", "arguments": {"city": text(rng, least=1)}},
            }
            for each in ids
        ]
        content = text(rng, least=1) if self.content_beside_calls and rng.random() < 0.3 else None
        call = {"role": "assistant", "content": content, "tool_calls": calls}
        if self.thinks and rng.random() < 0.5:
            call["reasoning_content"] = reasoning(rng)
        return [call, *({"role": "tool", "content": text(rng, least=1), "tool_call_id": each} for each in ids)]


def _calls(message: dict, content: str) -> str:
    """Tool calls as Qwen writes them."""
    made = ""
    for number, call in enumerate(message.get("tool_calls", [])):
        function = call["function"]
        made += "\n" if content or number else ""
        made += (
            f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {_json(function["arguments"])}}}\n</tool_call>'
        )
    return made


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _plain(end: str, *, strips: bool = False) -> Callable[[list[dict], int], str]:
    def said(messages, turn):
        content = messages[turn]["content"]
        return (content.strip() if strips else content) + end

    return said


def _qwen2_5(messages, turn):
    content = messages[turn]["content"] or ""
    return content + _calls(messages[turn], content) + "<|im_end|>"


def _qwen3(messages, turn):
    message = messages[turn]
    content, thought = message["content"] or "", message.get("reasoning_content", "")
    if "reasoning_content" not in message and "</think>" in content:
        thought = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
        content = content.split("</think>")[-1].lstrip("\n")
    calls = _calls(message, content)
    if turn > max(i for i, each in enumerate(messages) if each["role"] == "user"):
        last = turn == len(messages) - 1
        if last or thought:
            content = "<think>\n" + thought.strip("\n") + "\n</think>\n\n" + content.lstrip("\n")
    return content + calls + "<|im_end|>"


def _nemotron(messages, turn):
    message = messages[turn]
    content = message["content"] or ""
    if message.get("reasoning_content"):
        content = f"<think>\n{message['reasoning_content']}\n</think>\n{content}"
    elif "</think>" not in content:
        content = "<think></think>" + content
    last_user = max(i for i, each in enumerate(messages) if each["role"] == "user")
    if turn < last_user:
        rest = content.split("</think>")[-1]
        content = "<think></think>" + (rest.strip() if "tool_calls" in message else rest)
    content = content.strip()
    for call in message.get("tool_calls", []):
        arguments = "".join(
            f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in call["function"]["arguments"].items()
        )
        content += "\n" if call is message["tool_calls"][0] else ""
        content += f"<tool_call>\n<function={call['function']['name']}>\n{arguments}</function>\n</tool_call>\n"
    return content + "<|im_end|>"


def _llama3_1(messages, turn):
    calls = messages[turn].get("tool_calls")
    if not calls:
        return messages[turn]["content"].strip() + "<|eot_id|>"
    function = calls[0]["function"]
    return f'{{"name": "{function["name"]}", "parameters": {_json(function["arguments"])}}}<|eot_id|>'


def _mistral(messages, turn):
    calls = messages[turn].get("tool_calls")
    if not calls:
        return messages[turn]["content"] + "</s>"
    made = (_json(call["function"])[:-1] + f', "id": "{call["id"][-9:]}"}}' for call in calls)
    return "[TOOL_CALLS] [" + ", ".join(made) + "]</s>"


def _of(name: str, said: Callable[[list[dict], int], str], **options) -> Case:
    return Case(name, (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"), said, **options)


CASES = {
    case.name: case
    for case in [
        Case("chatml", DEFAULT_TEMPLATE, _plain("<|im_end|>")),
        Case("hand_made", HAND_MADE, _plain(" ||")),
        _of("qwen2_5", _qwen2_5, tools=3),
        _of("qwen3", _qwen3, tools=3, thinks=True),
        _of("nemotron_3_nano", _nemotron, tools=3, thinks=True),
        _of("llama2", _plain(" </s>", strips=True)),
        _of("llama3", _plain("<|eot_id|>", strips=True)),
        _of("llama3_1", _llama3_1, tools=1, content_beside_calls=False),
        _of("gemma", _plain("<end_of_turn>", strips=True), system=False),
        _of("gemma3", _plain("<end_of_turn>", strips=True)),
        _of("phi3_5", _plain("<|end|>")),
        _of("mistral_small_3_1", _mistral, tools=2, content_beside_calls=False),
    ]
}


def conversations(case: Case, count: int) -> list[dict]:
    """Random conversations, the same in every run."""
    rng = random.Random(case.name)
    return [case.conversation(rng) for _ in range(count)]
