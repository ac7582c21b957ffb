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
from freedive.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from freedive.text.renderer import Renderer

_REASONING = ("reasoning_content", "thinking", "reasoning")
_ASKS_FOR_NONE = re.compile(r"(?<!_)content['\"\]]*\s+is\s+(not\s+)?none(?!\s+or\b)")
_CONTINUE_MARK = "<CONTINUE-FROM-HERE> "  # the space shows whether the template trims what it is given


class ChatTemplate:
    """A model's chat templates by name. "default" is used, or "tool_use", if there is one, when tools are given."""

    def __init__(self, templates: Mapping[str, str], roles: Mapping[str, str]) -> None:
        self._sources = templates
        self._roles = roles

    @property
    def sources(self) -> Mapping[str, str]:
        """The templates by name."""
        return self._sources

    @property
    def source(self) -> str:
        """The text of all templates."""
        return "\n".join(self._sources.values())

    @classmethod
    def from_folder(cls, folder: Path, tokenizer: Tokenizer) -> ChatTemplate:
        """Read chat_template.jinja and additional_chat_templates/, or else the entry in tokenizer_config.json or
        chat_template.json. One that is empty is none."""
        files = {"default": folder / "chat_template.jinja"}
        files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
        templates = _written({name: _read(path) for name, path in files.items() if path.is_file()})
        for other in ("tokenizer_config.json", "chat_template.json"):
            templates = templates or _named(optional_json(folder / other).get("chat_template"))
        return cls(templates, tokenizer.roles)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
        """Read tokenizer.chat_template and its named companions (tokenizer.chat_template.tool_use ...)."""
        key = "tokenizer.chat_template"
        named = {name.removeprefix(f"{key}."): text for name, text in metadata.items() if name.startswith(f"{key}.")}
        return cls(_named(metadata.get(key)) | _written(named), tokenizer.roles)

    def check(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """UserError if there are ``tools``, and no template speaks of any."""
        if tools and not re.search(r"\btools\b", self.source):
            raise UserError(
                "This model's chat template knows no tools", "Ask without them, or choose another model", param="tools"
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
        """The prompt for ``messages`` ({"role": ..., "content": ...}), as transformers renders it.

        ``add_generation_prompt`` opens the assistant's answer; ``continue_final_message`` instead leaves the last
        message open. ``variables`` are the template's own switches. Raises UserError if there is no template, if the
        template refuses the messages, and if it fails or does not come to an end.
        """
        if not messages:
            raise UserError("There are no messages", "Send at least one message", param="messages")
        name = "tool_use" if tools and "tool_use" in self._sources else "default"
        source = self._sources.get(name, "")
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
        from freedive.text.renderer import Renderer  # imported here: jinja2 takes long, and not everything is a chat

        return Renderer(self._sources)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name} cannot be read ({error})", "Fetch the model again") from None


def _named(entry: Any) -> dict[str, str]:
    """A configuration's chat_template: nothing, one template, or a list of {"name": ..., "template": ...}."""
    match entry:
        case None:
            return {}
        case str():
            return _written({"default": entry})
        case [*items] if all(isinstance(item, dict) and {"name", "template"} <= item.keys() for item in items):
            return _written({str(item["name"]): str(item["template"]) for item in items})
    raise UserError("The model's chat_template is neither text nor a list of templates", "Fetch the model again")


def _written(templates: Mapping[str, str]) -> dict[str, str]:
    """Those of ``templates`` that hold something."""
    return {name: text for name, text in templates.items() if text.strip()}


class Arguments(dict[str, Any]):
    """A tool call's arguments. Templates differ in whether they want an object or its JSON text: this is either.

    What a model left unfinished is no object: then there are none, and the text is ``unread``.
    """

    unread: str | None = None

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False) if self.unread is None else self.unread

    def __add__(self, other: Any) -> str:
        return str(self) + str(other)

    def __radd__(self, other: Any) -> str:
        return str(other) + str(self)


def _prepared(message: Mapping[str, Any]) -> dict[str, Any]:
    """As transformers: no empty fields, and the reasoning under every name that templates read."""
    fields = {key: value for key, value in message.items() if value is not None}
    reasoning = next((fields[name] for name in _REASONING if name in fields), None)
    return fields if reasoning is None else {"thinking": reasoning, **fields, "reasoning_content": reasoning}


def _prepared_calls(message: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What a message with tool calls has for a template that knows of them: objects as arguments, and a content."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or "tool_calls" not in source:
        return {}
    content = message.get("content") or (None if _ASKS_FOR_NONE.search(source) else "")
    return {"content": content, "tool_calls": [_prepared_call(call) for call in calls]}


def _prepared_call(call: Any) -> Any:
    """``call`` with its arguments, which OpenAI's clients write as JSON, as :class:`Arguments` where they can be."""
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
    """``message`` with the mark behind its text, and that text."""
    content = message.get("content")
    if isinstance(content, str):
        return message | {"content": content + _CONTINUE_MARK}, content
    blocks = list(content or [])
    for index in reversed(range(len(blocks))):
        if "text" in blocks[index]:
            text = blocks[index]["text"]
            blocks[index] = blocks[index] | {"text": text + _CONTINUE_MARK}
            return message | {"content": blocks}, text
    raise UserError("The last message has no text to continue", "Give it some content", param="messages")


def _cut(rendered: str, last_text: str) -> str:
    """``rendered`` up to the mark, which must follow the whole last text."""
    before, mark, after = rendered.rpartition(_CONTINUE_MARK.rstrip())
    if not mark or last_text.strip() not in before:
        raise UserError(
            "The chat template leaves out parts of the last message, so that it cannot be continued",
            "Continue a message that the template shows as it is",
            param="messages",
        )
    return before if after.startswith(" ") else before.rstrip()
