"""Closing markers are written token by token, in every dialect, and never in the middle of a character."""

from __future__ import annotations

import numpy as np
import pytest
from constrained import smollm2

from freedive.text.dialects.dialect import Dialect, Mode, State
from freedive.text.dialects.parser import Answer, parse
from freedive.text.dialects.registry import dialect_for
from freedive.text.thinking import effort_budget, thinking_variables
from freedive.text.thinking_budget import ThoughtConstraint, thinking_budget

GRANITE = "Here is my thought process: Here is my response:"
THOUGHT = "one 😀🎉 two 😀🎉 three " * 20
DIALECTS = {
    "tags": (dialect_for("<think> </think>", []), State(Mode.THOUGHT), ""),
    "words": (dialect_for(GRANITE, []), State(), "Here is my thought process:"),
    "messages": (dialect_for("<|channel|>", []), State(), "<|channel|>analysis<|message|>"),
}


class EndingAt:
    """A constraint that allows only ``token`` after ``count`` tokens."""

    complete = False

    def __init__(self, count: int, token: int) -> None:
        self.count, self.token = count, token

    def allowed(self) -> np.ndarray | None:
        only = np.zeros(49152 // 8, np.uint8)
        only[self.token // 8] = 1 << self.token % 8
        return only if self.count == 0 else None

    def take(self, token: int) -> None:
        self.count -= 1


def written(dialect: Dialect, state: State, opening: str, num_tokens: int) -> str:
    """Returns the output, up to the answer, of a model that would think endlessly."""
    tokenizer = smollm2()
    budget = thinking_budget(tokenizer, dialect, state, 1000, num_tokens)
    assert budget
    constraint = budget.constraint(None, None)
    tokens: list[int] = []
    for token in tokenizer.encode(opening + THOUGHT):
        while (bits := constraint.allowed()) is not None:
            (forced,) = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
            tokens.append(int(forced))
            constraint.take(int(forced))
            if constraint.allowed() is None:
                return tokenizer.decode(tokens, skip_special=False)
        tokens.append(token)
        constraint.take(token)
    raise AssertionError("the thought was not closed")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("num_tokens", [8, *range(20, 60)])
def test_thought_is_closed_in_time_between_characters(dialect: str, num_tokens: int) -> None:
    spoken, state, opening = DIALECTS[dialect]
    text = written(spoken, state, opening, num_tokens)
    answer = parse(spoken, text + "Yes.", state)
    assert answer == Answer("Yes.", answer.reasoning, ())
    assert "\ufffd" not in text
    assert THOUGHT.startswith(answer.reasoning)
    assert len(smollm2().encode(text)) <= num_tokens + 24  # the markers are several tokens here


def test_a_format_that_forbids_the_closing_marker_takes_precedence() -> None:
    dialect, state, _ = DIALECTS["tags"]
    budget = thinking_budget(smollm2(), dialect, state, 1000, 0)
    assert budget
    constraint = ThoughtConstraint(budget, EndingAt(0, 7), 0)
    bits = constraint.allowed()
    assert bits is not None
    assert np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist() == [7]


def test_efforts_bound_the_thoughts_of_models_without_levels_only() -> None:
    efforts = ("none", "minimal", "low", "medium", "high", "max")
    assert [effort_budget(effort, "enable_thinking") for effort in efforts] == [None, 1024, 1024, 8192, None, None]
    assert {effort_budget(effort, "reasoning_effort") for effort in efforts} == {None}
    assert effort_budget(None, "") is None


def test_effort_asked_of_a_model_without_thoughts_has_no_effect() -> None:
    assert thinking_variables(None, "low", "", Dialect({})) == {}
