"""LlamaIndex's OpenAILike, for chats and for embeddings."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import TestCase

import openai
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

raises = TestCase().assertRaises

HELLO = [ChatMessage(role="user", content="hello")]


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def _degrees(city: str) -> str:
    return f"12 degrees in {city}"


WEATHER = FunctionTool.from_defaults(_degrees, name="weather", description="The weather in a city")


def _model(url: str, **options: Any) -> OpenAILike:
    options = {"model": "echo", "context_window": 4096, "max_retries": 0, "timeout": 20} | options
    chats = {"is_chat_model": True, "is_function_calling_model": True}
    return OpenAILike(api_base=f"{url}/v1", api_key="none", **chats | options)


def chat(url: str) -> None:
    answer = _model(url).chat(HELLO)
    assert answer.message.content == "user: hello"
    assert answer.raw.usage.total_tokens == 22


def stream(url: str) -> None:
    chunks = list(_model(url).stream_chat(HELLO))
    assert "".join(chunk.delta for chunk in chunks) == chunks[-1].message.content == "user: hello"


def asynchronous(url: str) -> None:
    assert asyncio.run(_model(url).achat(HELLO)).message.content == "user: hello"


def completions(url: str) -> None:
    assert _model(url, is_chat_model=False, max_tokens=50).complete("once").text == "once"


def tools(url: str) -> None:
    model = _model(url)
    history = [ChatMessage(role="user", content="weather")]
    answer = model.chat_with_tools([WEATHER], chat_history=history)
    (call,) = model.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("weather", {"city": "Köln"})
    result = WEATHER.call(**call.tool_kwargs).content
    said = ChatMessage(role="tool", content=result, additional_kwargs={"tool_call_id": call.tool_id})
    assert (
        model.chat_with_tools([WEATHER], chat_history=[*history, answer.message, said]).message.content == "It is mild."
    )


def tools_streamed(url: str) -> None:
    model = _model(url)
    *_, last = model.stream_chat_with_tools([WEATHER], user_msg="weather twice", allow_parallel_tool_calls=True)
    cities = [call.tool_kwargs["city"] for call in model.get_tool_calls_from_response(last)]
    assert cities == ["Köln", "Bonn"]


def tool_choice(url: str) -> None:
    model = _model(url)
    for choice in ({"tool_required": True}, {"tool_choice": "weather"}):
        answer = model.chat_with_tools([WEATHER], user_msg="weather", **choice)
        assert model.get_tool_calls_from_response(answer)[0].tool_name == "weather"


def json_schema(url: str) -> None:
    model = _model(url, should_use_structured_outputs=True)
    assert model.structured_predict(Person, PromptTemplate("Who was {who}?"), who="Ada") == Person(name="Ada", age=36)


def json_by_tools(url: str) -> None:
    model = _model(url)
    assert model.structured_predict(Person, PromptTemplate("Call for {who}"), who="Ada") == Person(name="Ada", age=36)


def embeddings(url: str) -> None:
    model = OpenAILikeEmbedding(model_name="echo", api_base=f"{url}/v1", api_key="none", max_retries=0)
    first, second, third = model.get_text_embedding_batch(["one", "two", "one"])
    assert first == third != second
    assert len(model.get_query_embedding("one")) == len(first)


def errors(url: str) -> None:
    with raises(openai.NotFoundError):
        _model(url, model="gpt-99").chat(HELLO)
    with raises(openai.BadRequestError):
        _model(url).chat(HELLO, top_p=7)
    with raises(openai.RateLimitError):
        _model(url).chat([ChatMessage(role="user", content="overload")])
    with raises(openai.APIError):
        list(_model(url).stream_chat([ChatMessage(role="user", content="boom")]))
