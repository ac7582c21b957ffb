"""LangChain's ChatOpenAI and OpenAIEmbeddings."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import TestCase

import openai
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

raises = TestCase().assertRaises


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@tool
def _weather(city: str) -> str:
    """The weather in a city."""
    return f"12 degrees in {city}"


_weather.name = "weather"


def _model(url: str, **options: Any) -> ChatOpenAI:
    options = {"model": "echo", "max_retries": 0, "timeout": 20} | options
    return ChatOpenAI(base_url=f"{url}/v1", api_key="none", **options)


def chat(url: str) -> None:
    answer = _model(url, max_tokens=100, temperature=0.5).invoke([SystemMessage("Be brief"), HumanMessage("hello")])
    assert answer.content == "system: Be brief\nuser: hello"
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["input_tokens"] == answer.usage_metadata["output_tokens"] == 28


def stream(url: str) -> None:
    chunks = list(_model(url, stream_usage=True).stream("hello"))
    assert len(chunks) > 5
    whole = sum(chunks[1:], chunks[0])
    assert whole.content == "user: hello"
    assert whole.response_metadata["finish_reason"] == "stop"
    assert whole.usage_metadata["total_tokens"] == 22


def batch(url: str) -> None:
    answers = asyncio.run(_model(url).abatch(["a", "b"]))
    assert [answer.content for answer in answers] == ["user: a", "user: b"]


def tools(url: str) -> None:
    model = _model(url).bind_tools([_weather])
    messages = [HumanMessage("weather")]
    messages.append(model.invoke(messages))
    (call,) = messages[-1].tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Köln"})
    result = _weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert model.invoke([*messages, result]).content == "It is mild."


def tools_streamed(url: str) -> None:
    chunks = list(_model(url).bind_tools([_weather]).stream("weather twice"))
    whole = sum(chunks[1:], chunks[0])
    assert [call["args"]["city"] for call in whole.tool_calls] == ["Köln", "Bonn"]


def tool_choice(url: str) -> None:
    for choice in ("any", "weather"):
        answer = _model(url).bind_tools([_weather], tool_choice=choice, parallel_tool_calls=False).invoke("weather")
        assert answer.tool_calls[0]["name"] == "weather"


def json_schema(url: str) -> None:
    model = _model(url).with_structured_output(Person, method="json_schema")
    assert model.invoke("Who was Ada?") == Person(name="Ada", age=36)
    strict = _model(url).with_structured_output(Person, method="json_schema", strict=True)
    assert strict.invoke("Who was Ada?") == Person(name="Ada", age=36)


def json_object(url: str) -> None:
    model = _model(url).with_structured_output(Person, method="json_mode")
    assert model.invoke("Who was Ada, in JSON?") == Person(name="Ada", age=36)


def json_by_tools(url: str) -> None:
    model = _model(url).with_structured_output(Person, method="function_calling")
    assert model.invoke("Call for Ada") == Person(name="Ada", age=36)


def embeddings(url: str) -> None:
    # Otherwise it splits texts into OpenAI's tokens, whose vocabulary it would download.
    model = OpenAIEmbeddings(base_url=f"{url}/v1", api_key="none", model="echo", check_embedding_ctx_length=False)
    first, second, third = model.embed_documents(["one", "two", "one"])
    assert first == third != second
    assert len(model.embed_query("one")) == len(first)


def errors(url: str) -> None:
    with raises(openai.NotFoundError):
        _model(url, model="gpt-99").invoke("hello")
    with raises(openai.BadRequestError):
        _model(url, top_p=7).invoke("hello")
    with raises(ContextOverflowError):
        _model(url).invoke("x" * 5000)
    with raises(openai.RateLimitError):
        _model(url).invoke("overload")
    with raises(openai.APIError):
        list(_model(url).stream("boom"))
