"""What a model is asked, as plain data: a conversation or a text. Every API and command makes one of these."""

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
"""A conversation as OpenAI has it: {"role": ..., "content": ...}."""

RESERVED = frozenset({"self", "messages", "tools", "add_generation_prompt", "continue_final_message"}) | {
    "tool_choice",
    "parallel_tool_calls",
    "format",
    "effort",
    "continues",
}
"""Names that are no variables of a chat template's own: what they say has fields of the input."""


@dataclass(frozen=True)
class ChatInput:
    """A conversation of which the next message is asked for or, with ``continue_final_message``, the rest of the last.

    The text of the answer has the ``format``, if there is one, unless ``tools`` are called. ``tools`` are as OpenAI has
    them; ``unlisted_tools`` may be called too, though the template does not list them, since messages told of them.
    ``tool_choice`` is auto, none (the model does not learn of the tools), required, or a
    :class:`freedive.text.tools.Function`; without ``parallel_tool_calls`` there is but one call. Where a constraint
    enforces calls, as for any of this and for a tool that is "strict", their arguments have the form that "parameters"
    say.

    ``thinking`` turns thoughts on or off, ``effort`` says how much of them; None leaves it to the model. After
    ``thinking_budget`` tokens a thought is ended; 0 turns thoughts off. A model that cannot think takes an effort as
    advice, but refuses to be told to think unless ``thinking_is_advice``. ``template_kwargs`` are the chat template's
    own switches.
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
        """Whether the answer may have a form, which can take seconds to prepare."""
        return bool(self.format or self.tools)


@dataclass(frozen=True)
class TextInput:
    """A ``text``, or its token ids, that goes on without a chat template.

    With a ``suffix`` the answer is what stands between the two, for models that were trained for it. ``add_special``
    adds what the model expects around a text (bos, eos). The answer has the ``format``, if there is one.
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
                raise UserError("'suffix' needs a prompt of text", "Send text", param="suffix")

    @property
    def is_guided(self) -> bool:
        """Whether the answer may have a form, which can take seconds to prepare."""
        return self.format is not None


Input = ChatInput | TextInput


def check_template_kwargs(variables: Mapping[str, Any]) -> None:
    """Raises UserError for variables that are not a chat template's own."""
    if reserved := sorted(RESERVED & variables.keys()):
        what = f"'chat_template_kwargs' has '{reserved[0]}', which is no variable of a template's own"
        raise UserError(what, "Use the field of the request", param="chat_template_kwargs")
