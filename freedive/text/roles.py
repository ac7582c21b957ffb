"""Adapts the roles of a conversation to a chat template that refuses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any

from freedive.errors import TemplateRefusal

if TYPE_CHECKING:
    from freedive.text.template import ChatTemplate

Message = Mapping[str, Any]


def rendered(template: ChatTemplate, messages: Sequence[Message], /, **options: Any) -> str:
    """Renders ``messages``; ``options`` are those of ``ChatTemplate.render``, including template variables.

    Agents send system messages inside a conversation, and several user messages in a row. If the template refuses or
    drops such system messages, they become user messages; if it still refuses, consecutive user messages are joined.
    Messages that the template accepts are not changed. Raises the first refusal if the template accepts no form.
    """
    refusals: list[TemplateRefusal] = []
    incomplete: list[str] = []
    for form in _forms(messages):
        try:
            text = template.render(form, **options)
        except TemplateRefusal as refusal:
            refusals.append(refusal)
            continue
        if all(instruction.strip() in text for instruction in _later_instructions(messages)):
            return text
        incomplete.append(text)
    if incomplete:
        return incomplete[0]
    raise refusals[0]


def _forms(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """Returns ``messages`` and their other forms, without repetitions."""
    instructed = _instructed_first(messages)
    forms: list[Sequence[Message]] = [messages]
    for form in (instructed, _joined(instructed, "user")):
        if list(form) != list(forms[-1]):
            forms.append(form)
    return forms


def _instructed_first(messages: Sequence[Message]) -> list[Message]:
    """Joins the leading system messages into one; later system messages become user messages."""
    leading = list(takewhile(lambda message: message.get("role") == "system", messages))
    later = [
        {**message, "role": "user"} if message.get("role") == "system" else message
        for message in messages[len(leading) :]
    ]
    return [*_joined(leading, "system"), *later]


def _joined(messages: Sequence[Message], role: str) -> list[Message]:
    """Joins consecutive messages of this role that have only text."""
    joined: list[Message] = []
    for joinable, group in groupby(messages, key=lambda message: _is_text(message, role)):
        same = list(group)
        text = "\n\n".join(str(message["content"]) for message in same) if joinable else ""
        joined += [{"role": role, "content": text}] if joinable and len(same) > 1 else same
    return joined


def _is_text(message: Message, role: str) -> bool:
    return message.get("role") == role and message.keys() == {"role", "content"} and isinstance(message["content"], str)


def _later_instructions(messages: Sequence[Message]) -> list[str]:
    """Returns the texts of system messages after the first message."""
    return [str(message["content"]) for message in messages[1:] if _is_text(message, "system")]
