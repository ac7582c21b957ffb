"""Thoughts of a real model: none if they are turned off or a format forbids them, and no more than their budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import freedive
from freedive.engine.generation import Generation
from freedive.text.dialects.parser import Answer, joined
from freedive.text.format import Format
from freedive.text.request import ChatInput

SUM = [{"role": "user", "content": "What is 17 + 25 - 3?"}]
CHOICE = Format(
    "json_schema",
    {
        "type": "object",
        "properties": {"a": {"enum": ["yes", "no"]}},
        "required": ["a"],
        "additionalProperties": False,
    },
)


@pytest.fixture(scope="module", params=["auto", "off"])
def model(request: pytest.FixtureRequest) -> Iterator[freedive.LanguageModel]:
    with freedive.load("nano", cache_tokens=4096, speculation=request.param) as model:
        yield model


def begin(model: freedive.LanguageModel, max_tokens: int = 100, **asked: Any) -> Generation:
    prompt = model.prepare(ChatInput(SUM, **asked))
    return model.engine.submit(prompt, model.sampling(temperature=0, max_tokens=max_tokens))


def read(generation: Generation) -> tuple[Answer, int, str | None]:
    """Returns the answer, the number of its tokens that are thoughts, and its finish reason."""
    outputs = list(generation)
    answer = joined(event for output in outputs for event in output.events)
    return answer, sum(output.is_thinking for output in outputs), outputs[-1].finish_reason


OFF = ({"thinking": False}, {"effort": "none"}, {"thinking_budget": 0}, {"thinking": False, "thinking_budget": 9})


@pytest.mark.parametrize("asked", OFF, ids=str)
def test_no_thoughts_come_if_they_are_turned_off_with_or_without_a_format(
    model: freedive.LanguageModel, asked: dict[str, Any]
) -> None:
    assert read(begin(model))[1] > 20  # it thinks if that is allowed
    for form in (None, CHOICE):
        answer, num_thoughts, reason = read(begin(model, format=form, **asked))
        assert (answer.reasoning, num_thoughts <= 2, reason) == ("", True, "stop")
        assert answer.content
        assert form is None or json.loads(answer.content)["a"] in ("yes", "no")


def test_a_format_begins_at_once_unless_thoughts_are_requested(
    model: freedive.LanguageModel,
) -> None:
    answer, num_thoughts, reason = read(begin(model, format=CHOICE))
    assert (answer.reasoning, num_thoughts, reason) == ("", 0, "stop")
    assert json.loads(answer.content)


@pytest.mark.parametrize("max_tokens", [40, 60, 100])
def test_thoughts_leave_half_of_the_tokens_to_a_format(model: freedive.LanguageModel, max_tokens: int) -> None:
    answer, num_thoughts, reason = read(begin(model, max_tokens, format=CHOICE, thinking=True))
    assert 10 < num_thoughts <= max_tokens // 2
    assert reason == "stop"
    assert json.loads(answer.content)


@pytest.mark.parametrize("budget", [1, 2, 5, 20])
def test_thoughts_end_with_their_budget_and_the_answer_follows(model: freedive.LanguageModel, budget: int) -> None:
    whole, _, _ = read(begin(model, thinking=True))
    for form in (None, CHOICE):
        answer, num_thoughts, reason = read(begin(model, format=form, thinking=True, thinking_budget=budget))
        assert (num_thoughts, reason) == (budget, "stop")
        assert whole.reasoning.startswith(answer.reasoning)
        assert answer.content
        assert form is None or json.loads(answer.content)


def test_budget_that_is_not_reached_changes_nothing(model: freedive.LanguageModel) -> None:
    assert read(begin(model, thinking=True, thinking_budget=90)) == read(begin(model, thinking=True))


ALONE: dict[int, list[tuple[int, ...]]] = {}
"""The tokens by budget, with and without speculation."""


def test_bounded_thoughts_are_equal_alone_in_a_batch_and_with_speculation(model: freedive.LanguageModel) -> None:
    budgets = range(1, 30, 4)
    for budget in budgets:
        tokens = [output.token_ids for output in begin(model, thinking=True, thinking_budget=budget)]
        assert tokens == ALONE.setdefault(budget, tokens)
    together = {budget: begin(model, thinking=True, thinking_budget=budget) for budget in budgets}
    for budget, generation in together.items():
        assert [output.token_ids for output in generation] == ALONE[budget]
