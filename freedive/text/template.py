"""Chat templates: render messages as the text that a model was trained on."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freedive.errors import UserError
from freedive.text.arguments import argument_values
from freedive.text.hf_tokenizer import optional_json
from freedive.text.message_tools import reads_tools_of_messages, with_tools
from freedive.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from freedive.text.renderer import Renderer

_REASONING = ("reasoning_content", "thinking", "reasoning")
_ASKS_FOR_NONE = re.compile(r"(?<!_)content['\"\]]*\s+is\s+(not\s+)?none(?!\s+or\b)")
_CONTINUE_MARK = "<CONTINUE-FROM-HERE> "  # the space shows whether the template trims the text


class ChatTemplate:
    """A model's chat templates by name: "tool_use" is used for requests with tools if it exists, else "default"."""

    def __init__(self, templates: Mapping[str, str], roles: Mapping[str, str]) -> None:
        self._sources = templates
        self._roles = roles

    @property
    def sources(self) -> Mapping[str, str]:
        """The templates by name."""
        return self._sources

    @property
    def source(self) -> str:
        """The source text of all templates."""
        return "\n".join(self._sources.values())

    @classmethod
    def from_folder(cls, folder: Path, tokenizer: Tokenizer) -> ChatTemplate:
        """Reads chat_template.jinja and additional_chat_templates/, else the entry in tokenizer_config.json or
        chat_template.json. Ignores empty templates. Raises UserError for a damaged file.
        """
        files = {"default": folder / "chat_template.jinja"}
        files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
        templates = _written({name: _read(path) for name, path in files.items() if path.is_file()})
        for other in ("tokenizer_config.json", "chat_template.json"):
            templates = templates or _named(optional_json(folder / other).get("chat_template"))
        return cls(templates, tokenizer.roles)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
        """Reads tokenizer.chat_template and named templates (tokenizer.chat_template.tool_use ...) of GGUF metadata."""
        key = "tokenizer.chat_template"
        named = {name.removeprefix(f"{key}."): text for name, text in metadata.items() if name.startswith(f"{key}.")}
        return cls(_named(metadata.get(key)) | _written(named), tokenizer.roles)

    def check(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """Raises UserError if there are ``tools``, and no template uses tools."""
        if tools and not re.search(r"\btools\b", self.source):
            raise UserError(
                "This model's chat template has no tools", "Leave the tools out, or choose another model", param="tools"
            )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """Renders ``messages`` ({"role": ..., "content": ...}) as transformers does.

        ``add_generation_prompt`` opens the assistant's answer; ``continue_final_message`` instead leaves the last
        message open. ``variables`` are further variables of the template. Raises UserError if there is no template, or
        if the template refuses the messages, fails or exceeds its budget.
        """
        if not messages:
            raise UserError("There are no messages", "Send at least one message", param="messages")
        name = "tool_use" if tools and "tool_use" in self._sources else "default"
        source = self._sources.get(name, "")
        if reads_tools_of_messages(source):
            messages = with_tools(messages, tools)
        chat = [_prepared(message) | _prepared_calls(message, source) for message in messages]
        if continue_final_message:
            add_generation_prompt = False
            chat[-1], last_text = _marked(chat[-1])
        text = self._renderer.render(
            name,
            {
                "messages": chat,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                **self._roles,
                **variables,
            },
        )
        return _cut(text, last_text) if continue_final_message else text

    @cached_property
    def _renderer(self) -> Renderer:
        from freedive.text.renderer import Renderer  # imported here, because jinja2 is slow to import

        return Renderer(self._sources)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name} cannot be read ({error})", "Fetch the model again") from None


def _named(entry: Any) -> dict[str, str]:
    """Returns the templates of a chat_template entry: None, one template, or {"name": ..., "template": ...} objects."""
    match entry:
        case None:
            return {}
        case str():
            return _written({"default": entry})
        case [*items] if all(isinstance(item, dict) and {"name", "template"} <= item.keys() for item in items):
            return _written({str(item["name"]): str(item["template"]) for item in items})
    raise UserError("The model's chat_template is neither text nor a list of templates", "Fetch the model again")


def _written(templates: Mapping[str, str]) -> dict[str, str]:
    """Returns the ``templates`` that are not empty."""
    return {name: text for name, text in templates.items() if text.strip()}


class Arguments(dict[str, Any]):
    """A tool call's arguments, which act as a dict and as its JSON text, because templates use either.

    If the model wrote no valid JSON object, the dict is empty, and ``unread`` is the text.
    """

    unread: str | None = None

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False) if self.unread is None else self.unread

    def __add__(self, other: Any) -> str:
        return str(self) + str(other)

    def __radd__(self, other: Any) -> str:
        return str(other) + str(self)


def _prepared(message: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the message without None fields, and with the reasoning under every name that templates use."""
    fields = {key: value for key, value in message.items() if value is not None}
    reasoning = next((fields[name] for name in _REASONING if name in fields), None)
    return fields if reasoning is None else {"thinking": reasoning, **fields, "reasoning_content": reasoning}


def _prepared_calls(message: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns the tool calls of a message with objects as arguments, and its content, if the template uses them."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or "tool_calls" not in source:
        return {}
    content = message.get("content") or (None if _ASKS_FOR_NONE.search(source) else "")
    return {"content": content, "tool_calls": [_prepared_call(call) for call in calls]}


def _prepared_call(call: Any) -> Any:
    """Returns ``call`` with its arguments, which OpenAI's clients send as JSON text, as :class:`Arguments`."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    given = arguments = function["arguments"]
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):
            arguments = argument_values(arguments or "{}")
    prepared = Arguments(arguments if isinstance(arguments, dict) else {})
    if isinstance(given, str) and arguments != prepared:
        prepared.unread = given
    return call | {"function": function | {"arguments": prepared}}


def _marked(message: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns ``message`` with a mark after its text, and the text without it."""
    content = message.get("content")
    if isinstance(content, str):
        return message | {"content": content + _CONTINUE_MARK}, content
    blocks = list(content or [])
    for index in reversed(range(len(blocks))):
        if "text" in blocks[index]:
            text = blocks[index]["text"]
            blocks[index] = blocks[index] | {"text": text + _CONTINUE_MARK}
            return message | {"content": blocks}, text
    raise UserError("The last message has no text to continue", "Send its content", param="messages")


def _cut(rendered: str, last_text: str) -> str:
    """Returns ``rendered`` up to the mark, which must follow the complete last text."""
    before, mark, after = rendered.rpartition(_CONTINUE_MARK.rstrip())
    if not mark or last_text.strip() not in before:
        raise UserError(
            "The last message cannot be continued, because the chat template drops parts of it",
            "Continue a message that has only text",
            param="messages",
        )
    return before if after.startswith(" ") else before.rstrip()
