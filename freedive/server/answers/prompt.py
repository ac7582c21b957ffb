"""The request that a conversation makes of its path: what the model reads, and what its answers are asked with.

The files of a message stand before its text, each as a block of its own::

    <file name="notes.txt">
    the text of the file
    </file>

    the text of the message

"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from freedive.engine.sampling import Sampling
from freedive.errors import UserError
from freedive.json_object import Json
from freedive.server.api_errors import explain
from freedive.server.conversations.records import Message
from freedive.server.openai.fields import ChatRequest

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


def chat_request(path: Sequence[Message], settings: Json, files: Files, *, model: str) -> ChatRequest:
    """Returns the request for the next message after ``path`` or, if that ends with an answer, for the rest of it.

    Raises UserError about the setting that cannot be honoured.
    """
    for tool in settings.get("tools") or ():
        raise UserError(f"This server has no tool {tool!r}", "Leave it out", param="settings.tools")
    system = [{"role": "system", "content": settings["system"]}] if settings.get("system") else []
    messages = [*system, *(_message(each, files) for each in path)]
    body: Json = {"repetition_detection": True, **_sampling(settings), "model": model, "messages": messages}
    if path[-1].role == "assistant":
        body["continue_final_message"] = True
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


def _message(message: Message, files: Files) -> Json:
    if message.role == "assistant":
        return {"role": "assistant", "content": message.content, "reasoning_content": message.reasoning}
    blocks = [_block(*files[id]) for id in message.files if id in files]
    return {"role": "user", "content": "\n\n".join([*blocks, message.content])}


def _block(name: str, text: str) -> str:
    end = "" if text.endswith("\n") else "\n"
    return f"<file name={json.dumps(name, ensure_ascii=False)}>\n{text}{end}</file>"
