"""Instructor: objects from answers, in each of its modes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from unittest import TestCase

import instructor
import openai
from instructor.core import InstructorRetryException
from openai import OpenAI
from pydantic import BaseModel, model_validator

raises = TestCase().assertRaises


class Person(BaseModel):
    """A person."""

    name: str
    age: int

    @model_validator(mode="after")
    def _lives(self) -> Person:
        assert self.age >= 0, f"{self.name} is not born"
        return self


ADA = {"name": "Ada", "age": 36}


def _client(url: str, mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20), mode=mode)


def _found(url: str, mode: instructor.Mode, text: str, max_retries: int = 1) -> dict[str, Any]:
    """The result is an instance of a class derived from ours, so it equals no instance of ours."""
    return _client(url, mode).create(response_model=Person, **_asked(text) | {"max_retries": max_retries}).model_dump()


def _streamed(url: str, mode: instructor.Mode, text: str) -> dict[str, Any]:
    *_, last = _client(url, mode).create_partial(response_model=Person, **_asked(text))
    return last.model_dump()


def _asked(text: str) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], "max_retries": 1}


def json_schema(url: str) -> None:
    assert _found(url, instructor.Mode.JSON_SCHEMA, "Who was Ada?") == ADA
    assert _streamed(url, instructor.Mode.JSON_SCHEMA, "Who was Ada?") == ADA


def json_object(url: str) -> None:
    assert _found(url, instructor.Mode.JSON, "Who was Ada, in JSON?") == ADA


def markdown(url: str) -> None:
    assert _found(url, instructor.Mode.MD_JSON, "Who was Ada?") == ADA


def tools(url: str) -> None:
    assert _found(url, instructor.Mode.TOOLS, "Call for Ada") == ADA
    assert _found(url, instructor.Mode.TOOLS_STRICT, "Call for Ada") == ADA
    assert _streamed(url, instructor.Mode.TOOLS, "Call for Ada") == ADA


def tools_in_parallel(url: str) -> None:
    client = _client(url, instructor.Mode.PARALLEL_TOOLS)
    (found,) = client.create(response_model=Iterable[Person], **_asked("Call for Ada"))
    assert found.model_dump() == ADA


def asked_again(url: str) -> None:
    """An answer that does not fit is sent back to the model with the reason."""
    for mode, text, name in (
        (instructor.Mode.TOOLS, "Call for Bob", "Bob"),
        (instructor.Mode.JSON_SCHEMA, "Who was Eve?", "Eve"),
    ):
        assert _found(url, mode, text, max_retries=2) == {"name": name, "age": 40}


def errors(url: str) -> None:
    client = _client(url, instructor.Mode.MD_JSON)
    for kind, asked in (
        (openai.NotFoundError, _asked("hello") | {"model": "gpt-99"}),
        (openai.BadRequestError, _asked("hello") | {"top_p": 7}),
        (openai.RateLimitError, _asked("overload")),
    ):
        with raises((kind, InstructorRetryException)) as caught:
            client.create(response_model=Person, **asked)
        assert isinstance(caught.exception.__cause__ or caught.exception, kind)
