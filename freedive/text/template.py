"""Chat templates: messages to the text that a model was trained on."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateSyntaxError

from freedive.errors import UserError
from freedive.text.folder import read_json
from freedive.text.sandbox import Refused, Sandbox
from freedive.text.tokenizer import Tokenizer

_REASONING = ("reasoning_content", "thinking", "reasoning")
_CONTINUE_MARK = "<CONTINUE-FROM-HERE> "  # the space shows whether the template trims what it is given


class ChatTemplate:
    """A model's chat templates by name. "default" is used, or "tool_use", if there is one, when tools are given."""

    def __init__(self, templates: Mapping[str, str], roles: Mapping[str, str]) -> None:
        self._sources = templates
        self._roles = roles
        self._compiled: dict[str, Template] = {}
        self._sandbox = Sandbox()
        self._lock = threading.Lock()

    @classmethod
    def from_folder(cls, folder: Path, tokenizer: Tokenizer) -> ChatTemplate:
        """Read chat_template.jinja and additional_chat_templates/, or else the entry in tokenizer_config.json."""
        files = {"default": folder / "chat_template.jinja"}
        files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
        templates = {name: _read(path) for name, path in files.items() if path.is_file()}
        return cls(
            templates or _named(read_json(folder / "tokenizer_config.json").get("chat_template")), tokenizer.roles
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
        """Read tokenizer.chat_template and its named companions (tokenizer.chat_template.tool_use ...)."""
        key = "tokenizer.chat_template"
        named = {name.removeprefix(f"{key}."): text for name, text in metadata.items() if name.startswith(f"{key}.")}
        return cls(_named(metadata.get(key)) | named, tokenizer.roles)

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
            raise UserError("There are no messages", "Send at least one message.", param="messages")
        chat = [_prepared(message) for message in messages]
        if continue_final_message:
            add_generation_prompt = False
            chat[-1], last_text = _marked(chat[-1])
        text = self._run(
            "tool_use" if tools and "tool_use" in self._sources else "default",
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

    def _run(self, name: str, variables: Mapping[str, Any]) -> str:
        with self._lock:  # the sandbox counts the steps of one rendering
            try:
                self._sandbox.steps = 0
                return self._template(name).render(variables)
            except UserError:
                raise
            except Refused as error:
                raise UserError(f"The chat template refuses these messages: {_line(error)}", param="messages") from None
            except Exception as error:  # a template is foreign code: it can raise whatever Python can
                raise UserError(
                    f"The chat template fails: {_line(error) or type(error).__name__}",
                    "Check the messages' fields, or use plain completion instead of chat.",
                    param="messages",
                ) from None

    def _template(self, name: str) -> Template:
        if name not in self._sources:
            known = f"only the chat templates {', '.join(self._sources)}" if self._sources else "no chat template"
            raise UserError(
                f"This model has {known}",
                "It is probably not a chat model: use plain completion, or pass a chat template of your own.",
            )
        if name not in self._compiled:
            try:
                self._compiled[name] = self._sandbox.from_string(self._sources[name])
            except TemplateSyntaxError as error:
                raise UserError(
                    f"The model's chat template is not valid (line {error.lineno}: {_line(error)})",
                    "Use plain completion, or pass a chat template of your own.",
                ) from None
        return self._compiled[name]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name} cannot be read ({error})", "Fetch the model again.") from None


def _named(entry: Any) -> dict[str, str]:
    """A configuration's chat_template: nothing, one template, or a list of {"name": ..., "template": ...}."""
    match entry:
        case None:
            return {}
        case str():
            return {"default": entry}
        case [*items] if all(isinstance(item, dict) and {"name", "template"} <= item.keys() for item in items):
            return {str(item["name"]): str(item["template"]) for item in items}
    raise UserError("The model's chat_template is neither text nor a list of templates", "Fetch the model again.")


def _prepared(message: Mapping[str, Any]) -> dict[str, Any]:
    """As transformers: no empty fields, and the reasoning under every name that templates read."""
    fields = {key: value for key, value in message.items() if value is not None}
    reasoning = next((fields[name] for name in _REASONING if name in fields), None)
    return fields if reasoning is None else {"thinking": reasoning, **fields, "reasoning_content": reasoning}


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
    raise UserError("The last message has no text to continue", "Give it some content.", param="messages")


def _cut(rendered: str, last_text: str) -> str:
    """``rendered`` up to the mark, which must follow the whole last text."""
    before, mark, after = rendered.rpartition(_CONTINUE_MARK.rstrip())
    if not mark or last_text.strip() not in before:
        raise UserError(
            "The chat template leaves out parts of the last message, so that it cannot be continued",
            "Continue a message that the template shows as it is.",
            param="messages",
        )
    return before if after.startswith(" ") else before.rstrip()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
