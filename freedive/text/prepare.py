"""Converts an input to a prompt: template, tokens, thinking budget, and the constraint of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

from freedive.errors import UserError
from freedive.text.dialects.dialect import Mark, initial_state
from freedive.text.dialects.registry import dialect_for
from freedive.text.format import Format
from freedive.text.grammar_constraint import GrammarCompiler, MakeConstraint
from freedive.text.infill import infill_marks
from freedive.text.lark import Lark
from freedive.text.output_spec import OutputSpec, constrain
from freedive.text.prompt import Prompt
from freedive.text.request import ChatInput, Input, TextInput
from freedive.text.roles import rendered
from freedive.text.template import ChatTemplate
from freedive.text.thinking import (
    can_think,
    effort_budget,
    has_switch,
    is_wanted,
    thinking_variables,
    without_thoughts,
)
from freedive.text.thinking_budget import thinking_budget
from freedive.text.tokenizer import Tokenizer
from freedive.text.tools import Tools


class PromptMaker:
    """Makes the prompts of one model, of up to ``max_context`` tokens. Safe to use from several threads.

    ``dialect`` separates thoughts and tool calls in an answer from its text.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, max_context: int) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.max_context = max_context
        self.dialect = dialect_for(template.source, tokenizer.added_tokens.values())
        self._compiler = GrammarCompiler(
            tokenizer, lambda text: text in (*self.dialect.marks, *self.dialect.separators)
        )

    @property
    def can_think(self) -> bool:
        """Whether the model can think before it answers."""
        return can_think(self.template.source, self.dialect)

    def prepare(self, asked: Input) -> Prompt:
        """Returns the prompt of an input. Raises UserError if the model cannot honour the input."""
        return self._chat(asked) if isinstance(asked, ChatInput) else self._text(asked)

    def _chat(self, asked: ChatInput) -> Prompt:
        tools = () if asked.tool_choice == "none" else asked.tools
        thinking, effort, budget = self._thoughts(asked)
        wanted = is_wanted(thinking, effort)
        self.template.check(tools)
        switches = thinking_variables(thinking, effort, self.template.source, self.dialect)
        text = self._rendered(asked, tools, {**switches, **asked.template_kwargs})
        dialect = self.dialect if tools else self.dialect.without_calls()
        if switches and not any(switches.values()):
            text = without_thoughts(text, initial_state(dialect, text), dialect)
        tokens, state = self.tokenizer.encode(text, max_tokens=self.max_context), initial_state(dialect, text)
        thoughts = self._thinks_unasked if wanted is None else wanted
        spec = OutputSpec(asked.format, tools, asked.tool_choice, asked.parallel_tool_calls, thoughts)
        dialect, make_constraint = constrain(spec, self._compiler, dialect, state)
        return Prompt(
            tokens,
            dialect,
            state,
            (*tools, *asked.unlisted_tools),
            self.dialect.is_visible,
            asked.continue_final_message,
            make_constraint,
            thinking_budget(
                self.tokenizer,
                dialect,
                state,
                self.max_context - len(tokens),
                0 if wanted is False else budget or effort_budget(effort, self.template.source),
            ),
        )

    def _thoughts(self, asked: ChatInput) -> tuple[bool | None, str | None, int | None]:
        """Returns thinking, effort and budget in tokens, without those that this model cannot honour."""
        if not self.can_think and asked.thinking_is_advice:
            return None, None, None
        if asked.thinking_budget == 0:
            return False, None, 0
        effort = asked.effort if self.can_think or asked.effort == "none" else None
        return asked.thinking, effort, asked.thinking_budget

    def _rendered(self, asked: ChatInput, tools: Tools, variables: Mapping[str, Any]) -> str:
        options = {"tools": tools or None, "continue_final_message": asked.continue_final_message}
        return rendered(self.template, asked.messages, **options, **variables)

    @cached_property
    def _thinks_unasked(self) -> bool:
        """Whether the model thinks by default, according to its template."""
        source = self.template.source
        if self.dialect.messages or not has_switch(source):
            return bool(self.dialect.messages) or any(begin in source for begin in self.dialect.markers(Mark.THINK))
        switches = thinking_variables(True, None, source, self.dialect)
        messages = [{"role": "user", "content": "Hello"}]
        try:
            return self.template.render(messages) == self.template.render(messages, **switches)
        except UserError:  # the template needs other messages and shows no default
            return True

    def _text(self, asked: TextInput) -> Prompt:
        encode = partial(self.tokenizer.encode, max_tokens=self.max_context)
        make_constraint = self._constraint(asked.format) if asked.format else None
        if not isinstance(asked.text, str):
            tokens = list(asked.text)
        elif asked.suffix:
            begin, between, end = map(self.tokenizer.encode, infill_marks(self.tokenizer.added_tokens.values()))
            before, after = (encode(part, parse_special=False) for part in (asked.text, asked.suffix))
            tokens = [*begin, *before, *between, *after, *end]
        else:
            tokens = encode(asked.text, add_special=asked.add_special)
        return Prompt(tokens, continues=True, make_constraint=make_constraint)

    def _constraint(self, format: Format) -> MakeConstraint:
        """Returns a factory of constraints that enforce ``format`` from the first token on; compiles the format once.

        Raises UserError if the format cannot be enforced.
        """
        lark = Lark(self._compiler.tokens)
        return self._compiler.compile(lark.rules(lark.part(format.grammar)), lark.parts)
