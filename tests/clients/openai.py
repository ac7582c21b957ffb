"""OpenAI's own library, in a newer version than in the other server tests."""

from __future__ import annotations

import asyncio
import json
from unittest import TestCase

import openai
from openai import OpenAI
from pydantic import BaseModel

raises = TestCase().assertRaises

HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


class Person(BaseModel):
    name: str
    age: int


def _client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)


def _asking(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def chat(url: str) -> None:
    answer = _client(url).chat.completions.create(model="echo", messages=HELLO, max_completion_tokens=100)
    assert answer.choices[0].message.content == "user: hello"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (11, 11, 22)


def thoughts(url: str) -> None:
    message = _client(url).chat.completions.create(model="echo", messages=_asking("think")).choices[0].message
    assert (message.reasoning_content, message.content) == ("Hm.", "So it is.")


def stream(url: str) -> None:
    options = {"include_usage": True}
    *chunks, last = _client(url).chat.completions.create(
        model="echo", messages=HELLO, stream=True, stream_options=options
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "user: hello"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage.total_tokens == 22


def asynchronous(url: str) -> None:
    async def both() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            asked = [client.chat.completions.create(model="echo", messages=_asking(text)) for text in "ab"]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    assert asyncio.run(both()) == ["user: a", "user: b"]


def stream_events(url: str) -> None:
    with _client(url).chat.completions.stream(model="echo", messages=HELLO) as events:
        kinds = {event.type for event in events}
        message = events.get_final_completion().choices[0].message
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert message.content == "user: hello"


def tools(url: str) -> None:
    messages = _asking("weather")
    choice = _client(url).chat.completions.create(model="echo", messages=messages, tools=[WEATHER]).choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Köln"})
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"}]
    answer = _client(url).chat.completions.create(model="echo", messages=messages, tools=[WEATHER])
    assert answer.choices[0].message.content == "It is mild."


def tools_streamed(url: str) -> None:
    with _client(url).chat.completions.stream(
        model="echo", messages=_asking("weather twice"), tools=[WEATHER]
    ) as events:
        calls = events.get_final_completion().choices[0].message.tool_calls
    assert [call.function.parsed_arguments["city"] for call in calls] == ["Köln", "Bonn"]
    assert calls[0].id != calls[1].id


def tool_choice(url: str) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        answer = _client(url).chat.completions.create(
            model="echo",
            messages=_asking("weather"),
            tools=[WEATHER],
            tool_choice=choice,
            parallel_tool_calls=False,
        )
        assert answer.choices[0].message.tool_calls[0].function.name == "weather"


def json_schema(url: str) -> None:
    asked = {"model": "echo", "messages": _asking("Who was Ada?"), "response_format": Person}
    message = _client(url).chat.completions.parse(**asked).choices[0].message
    assert message.parsed == Person(name="Ada", age=36)
    with _client(url).chat.completions.stream(**asked) as events:
        assert events.get_final_completion().choices[0].message.parsed == Person(name="Ada", age=36)


def json_object(url: str) -> None:
    answer = _client(url).chat.completions.create(
        model="echo", messages=_asking("Who was Ada, in JSON?"), response_format={"type": "json_object"}
    )
    assert json.loads(answer.choices[0].message.content) == {"name": "Ada", "age": 36}


def tools_parsed(url: str) -> None:
    tool = openai.pydantic_function_tool(Person, name="Person")
    answer = _client(url).chat.completions.parse(model="echo", messages=_asking("Call for Ada"), tools=[tool])
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == Person(name="Ada", age=36)


def embeddings(url: str) -> None:
    answer = _client(url).embeddings.create(model="echo", input=["one", "two", "one"])
    first, second, third = [entry.embedding for entry in answer.data]
    assert first == third != second
    assert len(first) == len(second)
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    plain = _client(url).embeddings.create(model="echo", input="one", encoding_format="float")
    assert all(abs(a - b) < 1e-6 for a, b in zip(plain.data[0].embedding, first, strict=True))


def completions(url: str) -> None:
    answer = _client(url).completions.create(model="echo", prompt="once", max_tokens=9)
    assert (answer.choices[0].text, answer.usage.total_tokens) == ("once", 8)


def models(url: str) -> None:
    assert [model.id for model in _client(url).models.list()] == ["echo"]
    assert _client(url).models.retrieve("echo").object == "model"


def errors(url: str) -> None:
    create = _client(url).chat.completions.create
    with raises(openai.NotFoundError) as unknown:
        create(model="gpt-99", messages=HELLO)
    assert (unknown.exception.param, unknown.exception.code) == ("model", "not_found")
    with raises(openai.BadRequestError) as bad:
        create(model="echo", messages=HELLO, top_p=7)
    assert bad.exception.param == "top_p"
    with raises(openai.RateLimitError):
        create(model="echo", messages=_asking("overload"))
    with raises(openai.APIError):
        list(create(model="echo", messages=_asking("boom"), stream=True))
