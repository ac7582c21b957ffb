"""The request that a conversation makes of its path: what the model reads, and what its answers are asked with.

The files of a message stand before its text, each as a block of its own::

    <file name="notes.txt">
    the text of the file
    </file>

    the text of the message

With the tool ``files``, a block has the number of the file's parts instead of its text: the model reads what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pydantic import ValidationError

from freedive.engine.sampling import Sampling
from freedive.errors import UserError
from freedive.json_object import Json
from freedive.server.api_errors import explain
from freedive.server.conversations.records import Message, ToolCall, refused
from freedive.server.openai.fields import ChatRequest
from freedive.server.tools.files import num_parts
from freedive.server.tools.tools import TOOLS, definition, result

CONTROLS = {
    "chat_template_kwargs",
    "enable_thinking",
    "ignore_eos",
    "max_completion_tokens",
    "reasoning_effort",
    "repetition_detection",
    "thinking",
    "thinking_budget",
}
"""What the setting ``sampling`` may have besides the fields of Sampling that a chat request has."""

Files = Mapping[str, tuple[str, str]]
"""(name, text) of files, by id."""


MAX_ROUNDS = 8
"""The most times that one answer calls tools; after that the model has none, so it must answer."""
MAX_CALLS = 8
"""The most calls of one round; further ones are dropped."""

BREAK = "\n\n"
"""Stands between the texts of two rounds, and between their thoughts."""


@dataclass(frozen=True)
class Background:
    """What an answer is made from: the messages ``before`` it, the settings of its conversation and its files.

    The tools ``allowed`` need not be asked about.
    """

    before: Sequence[Message]
    settings: Json
    files: Files
    model: str
    allowed: Sequence[str] = ()

    def request(self, answer: Message | None = None) -> ChatRequest:
        """Returns the request for the answer or, with what there is of it, for the rest. Raises UserError."""
        path = [*self.before, answer] if answer else self.before
        return chat_request(path, self.settings, self.files, model=self.model)

    def is_allowed(self, name: str) -> bool:
        """Whether a call need not be asked about: of a tool that is allowed, or of one that does not exist."""
        return name in self.allowed or name not in self.tools

    def done(self, call: ToolCall) -> ToolCall:
        """Runs a call and returns it with its result. Blocks for milliseconds."""
        texts = dict(self.files.values())
        return {**call, "state": "done", "result": result(call["name"], call["arguments"], self.tools, texts)}

    @property
    def tools(self) -> list[str]:
        """The tools that are turned on."""
        return self.settings.get("tools") or []


def chat_request(path: Sequence[Message], settings: Json, files: Files, *, model: str) -> ChatRequest:
    """Returns the request for the next message after ``path`` or, if that ends with an answer, for the rest of it.

    Raises UserError about the setting that cannot be honoured.
    """
    tools = settings.get("tools") or []
    for tool in set(tools) - TOOLS.keys():
        raise UserError(f"This server has no tool {tool[:100]!r}", "Leave it out", param="settings.tools")
    system = [{"role": "system", "content": settings["system"]}] if settings.get("system") else []
    messages = [*system, *(each for message in path for each in _messages(message, files, names_only="files" in tools))]
    body: Json = {"repetition_detection": True, **_sampling(settings), "model": model, "messages": messages}
    if messages[-1]["role"] == "assistant":
        body["continue_final_message"] = True
    if tools:
        rounds = {call["round"] for call in path[-1].calls}
        body |= {"tools": [definition(tool) for tool in dict.fromkeys(tools)]}
        body |= {"tool_choice": "none"} if len(rounds) >= MAX_ROUNDS else {}
    if schema := settings.get("response_schema"):
        body["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        errors = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        message, param = explain(errors, body)
        raise UserError(message, "Change the settings of the conversation", param=param) from None


def _sampling(settings: Json) -> Json:
    fields: Json = settings.get("sampling") or {}
    allowed = (ChatRequest.model_fields.keys() & Sampling.__dataclass_fields__.keys()) | CONTROLS
    for name in fields.keys() - allowed:
        short = name[:100]
        raise UserError(f"'{short}' is not a setting of answers", "Leave it out", param=f"sampling.{short}")
    return fields


def _messages(message: Message, files: Files, *, names_only: bool) -> Iterator[Json]:
    """Yields what the model reads of a message: an answer with calls is several messages."""
    if message.role == "user":
        blocks = [_block(*files[id], names_only=names_only) for id in message.files if id in files]
        yield {"role": "user", "content": "\n\n".join([*blocks, message.content])}
        return
    if not message.calls:
        yield {"role": "assistant", "content": message.content, "reasoning_content": message.reasoning}
        return
    text = thoughts = 0
    for _, group in groupby(message.calls, lambda call: call["round"]):
        calls = refused(list(group))
        text_end, thoughts_end = calls[-1]["text_end"], calls[-1]["thoughts_end"]
        said, thought = message.content[text:text_end], message.reasoning[thoughts:thoughts_end]
        yield _answer(said, thought, tool_calls=list(map(_call, calls)))
        for call in calls:
            yield {"role": "tool", "tool_call_id": call["id"], "name": call["name"], "content": call["result"]}
        text, thoughts = max(text, text_end), max(thoughts, thoughts_end)
    said, thought = message.content[text:], message.reasoning[thoughts:]
    if said or thought:
        yield _answer(said, thought)


def _answer(content: str, reasoning: str, **more: Any) -> Json:
    texts = {"content": content.removeprefix(BREAK), "reasoning_content": reasoning.removeprefix(BREAK)}
    return {"role": "assistant", **texts, **more}


def _call(call: ToolCall) -> Json:
    function = {"name": call["name"], "arguments": call["arguments"]}
    return {"id": call["id"], "type": "function", "function": function}


def _block(name: str, text: str, *, names_only: bool) -> str:
    quoted = json.dumps(name, ensure_ascii=False)
    if names_only:
        return f'<file name={quoted} parts="{num_parts(text)}" />'
    end = "" if text.endswith("\n") else "\n"
    return f"<file name={quoted}>\n{text}{end}</file>"
