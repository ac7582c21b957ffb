"""Prompts for a model that cannot think: explicit requests for thoughts are refused, hints have no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from freedive.api import text_parts
from freedive.checkpoint.open import open_checkpoint
from freedive.errors import UserError
from freedive.text.prepare import PromptMaker
from freedive.text.request import RESERVED, ChatInput, TextInput

ASK = ({"role": "user", "content": "Hi"},)


@pytest.fixture(scope="module")
def maker(smollm2_path: Path) -> PromptMaker:
    return PromptMaker(*text_parts(smollm2_path, open_checkpoint(smollm2_path)), max_context=1024)


@pytest.mark.parametrize(
    "asked",
    [
        {"effort": "low"},
        {"effort": "max"},
        {"thinking": True, "thinking_is_advice": True},
        {"thinking": True, "effort": "high", "thinking_budget": 9, "thinking_is_advice": True},
    ],
    ids=str,
)
def test_a_hint_to_think_has_no_effect(maker: PromptMaker, asked: dict[str, Any]) -> None:
    plain, advised = maker.prepare(ChatInput(ASK)), maker.prepare(ChatInput(ASK, **asked))
    assert (plain.tokens, plain.constraint(9)) == (advised.tokens, advised.constraint(9)) == (plain.tokens, None)


@pytest.mark.parametrize("effort", [None, "high"])
def test_an_explicit_request_to_think_is_refused(maker: PromptMaker, effort: str | None) -> None:
    with pytest.raises(UserError, match="does not think"):
        maker.prepare(ChatInput(ASK, thinking=True, effort=effort))


def test_tools_that_are_not_listed_change_no_prompt_but_are_known(maker: PromptMaker) -> None:
    late = {"type": "function", "function": {"name": "late", "parameters": {}}}
    prompt = maker.prepare(ChatInput(ASK, unlisted_tools=(late,)))
    assert prompt.tokens == maker.prepare(ChatInput(ASK)).tokens
    assert prompt.tools == (late,)


def test_texts_and_tokens_go_on_as_they_are(maker: PromptMaker) -> None:
    assert maker.prepare(TextInput((1, 2, 3))).tokens == [1, 2, 3]
    text = maker.prepare(TextInput("One two"))
    assert maker.tokenizer.decode(text.tokens) == "One two"
    assert text.continues


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_what_has_a_field_is_no_variable_of_a_template(name: str) -> None:
    with pytest.raises(UserError, match=f"has '{name}'"):
        ChatInput(ASK, template_kwargs={name: 1})


def test_an_unknown_effort_and_a_suffix_of_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="effort is 'huge'"):
        ChatInput(ASK, effort="huge")
    with pytest.raises(UserError, match="needs a prompt of text"):
        TextInput((1, 2), suffix="x")
