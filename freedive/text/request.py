"""The input of a request as plain data: a conversation or a text. All APIs and commands create inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from freedive.errors import UserError
from freedive.field_types import check_fields
from freedive.files import quote
from freedive.text.format import Format
from freedive.text.thinking import EFFORTS
from freedive.text.tools import ToolChoice, Tools

Messages = Sequence[Mapping[str, Any]]
"""A conversation in OpenAI's format: {"role": ..., "content": ...}."""

RESERVED = frozenset({"self", "messages", "tools", "add_generation_prompt", "continue_final_message"}) | {
    "tool_choice",
    "parallel_tool_calls",
    "format",
    "effort",
    "continues",
}
"""Names that ``template_kwargs`` may not have, because the input has fields for them."""


@dataclass(frozen=True)
class ChatInput:
    """A conversation. The answer is the next message or, with ``continue_final_message``, the rest of the last one.

    The text of the answer has the ``format``, if there is one, unless ``tools`` are called. ``tools`` are in OpenAI's
    format; the model may also call ``unlisted_tools``, which messages describe instead of the template.
    ``tool_choice`` is auto, none (the prompt has no tools), required, or a :class:`freedive.text.tools.Function`;
    without ``parallel_tool_calls`` the answer has at most one call. A ``tool_choice`` that requires calls, a
    ``format``, a "strict" tool and ``parallel_tool_calls`` of false constrain calls: their arguments then match
    "parameters".

    ``thinking`` turns thoughts on or off, ``effort`` sets their amount; None leaves both to the model. A thought ends
    after ``thinking_budget`` tokens; 0 turns thoughts off. For a model that cannot think, an effort is ignored, and
    ``thinking`` is an error unless ``thinking_is_advice``. ``template_kwargs`` are further variables of the chat
    template.
    """

    messages: Messages
    tools: Tools = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    format: Format | None = None
    thinking: bool | None = None
    effort: str | None = None
    thinking_budget: int | None = None
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    unlisted_tools: Tools = ()
    thinking_is_advice: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("messages", "tools", "unlisted_tools"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "template_kwargs", dict(self.template_kwargs))
        if self.effort not in (None, *EFFORTS):
            raise UserError(f"effort is {quote(self.effort)}", f"Choose one of {', '.join(EFFORTS)}", param="effort")
        check_template_kwargs(self.template_kwargs)

    @property
    def is_guided(self) -> bool:
        """Whether the answer may need a constraint, which can take seconds to compile."""
        return bool(self.format or self.tools)


@dataclass(frozen=True)
class TextInput:
    """A ``text``, or its token ids, to continue without a chat template.

    With a ``suffix``, the answer is the text between ``text`` and ``suffix``, for models that were trained for it.
    ``add_special`` adds the BOS and EOS tokens of the model. The answer has the ``format``, if there is one.
    """

    text: str | Sequence[int]
    suffix: str = ""
    add_special: bool = True
    format: Format | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.text, str):
            object.__setattr__(self, "text", tuple(self.text))
            if self.suffix:
                raise UserError("'suffix' needs a prompt of text", "Send the prompt as text", param="suffix")

    @property
    def is_guided(self) -> bool:
        """Whether the answer needs a constraint, which can take seconds to compile."""
        return self.format is not None


Input = ChatInput | TextInput


def check_template_kwargs(variables: Mapping[str, Any]) -> None:
    """Raises UserError if ``variables`` has a name that is a field of the input."""
    if reserved := sorted(RESERVED & variables.keys()):
        what = f"'chat_template_kwargs' has '{reserved[0]}', which is a field of the request"
        raise UserError(what, "Use that field", param="chat_template_kwargs")
