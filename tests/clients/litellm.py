"""litellm as a client of OpenAI's API, and of DeepSeek's, which has other paths."""

from __future__ import annotations

import asyncio
import json
from unittest import TestCase

import litellm
from pydantic import BaseModel

raises = TestCase().assertRaises

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Person(BaseModel):
    name: str
    age: int


def _asked(url: str, text: str, provider: str = "openai") -> dict[str, object]:
    return {
        "model": f"{provider}/echo",
        "api_base": url if provider == "deepseek" else f"{url}/v1",
        "api_key": "none",
        "messages": [{"role": "user", "content": text}],
        "num_retries": 0,
        "max_retries": 0,
    }


def chat(url: str) -> None:
    for provider in ("openai", "hosted_vllm", "deepseek", "lm_studio"):
        answer = litellm.completion(**_asked(url, "hello", provider), max_tokens=100, temperature=0.5)
        assert answer.choices[0].message.content == "user: hello"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.total_tokens == 22


def thoughts(url: str) -> None:
    for provider in ("openai", "hosted_vllm", "deepseek"):
        message = litellm.completion(**_asked(url, "think", provider)).choices[0].message
        assert (message.reasoning_content, message.content) == ("Hm.", "So it is.")


def thinking_switched(url: str) -> None:
    litellm.completion(**_asked(url, "hello", "deepseek"), thinking={"type": "enabled"})
    litellm.completion(**_asked(url, "hello", "hosted_vllm"), reasoning_effort="low")


def stream(url: str) -> None:
    for provider in ("openai", "deepseek"):
        *chunks, last = litellm.completion(
            **_asked(url, "hello", provider), stream=True, stream_options={"include_usage": True}
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "user: hello"
        assert last.usage.total_tokens == 22


def asynchronous(url: str) -> None:
    async def answers() -> list[str]:
        asked = [litellm.acompletion(**_asked(url, text)) for text in "ab"]
        return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    assert asyncio.run(answers()) == ["user: a", "user: b"]


def tools(url: str) -> None:
    for provider in ("openai", "deepseek"):
        asked = _asked(url, "weather", provider) | {"tools": [WEATHER]}
        choice = litellm.completion(**asked).choices[0]
        assert choice.finish_reason == "tool_calls"
        call = choice.message.tool_calls[0]
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Köln"})
        asked["messages"] += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"}]
        assert litellm.completion(**asked).choices[0].message.content == "It is mild."


def tools_streamed(url: str) -> None:
    chunks = list(litellm.completion(**_asked(url, "weather twice"), tools=[WEATHER], stream=True))
    calls = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Köln", "Bonn"]


def tool_choice(url: str) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = litellm.completion(**_asked(url, "weather"), tools=[WEATHER], tool_choice=choice)
        assert answer.choices[0].message.tool_calls[0].function.name == "weather"


def json_schema(url: str) -> None:
    for provider in ("openai", "hosted_vllm"):
        answer = litellm.completion(**_asked(url, "Who was Ada?", provider), response_format=Person)
        assert Person.model_validate_json(answer.choices[0].message.content) == Person(name="Ada", age=36)


def embeddings(url: str) -> None:
    answer = litellm.embedding(model="openai/echo", api_base=f"{url}/v1", api_key="none", input=["one", "two", "one"])
    first, second, third = [entry["embedding"] for entry in answer.data]
    assert first == third != second
    assert answer.usage.prompt_tokens > 0


def errors(url: str) -> None:
    with raises(litellm.NotFoundError):
        litellm.completion(**_asked(url, "hello") | {"model": "openai/gpt-99"})
    with raises(litellm.BadRequestError):
        litellm.completion(**_asked(url, "hello"), top_p=7)
    with raises(litellm.ContextWindowExceededError):
        litellm.completion(**_asked(url, "x" * 5000))
    with raises(litellm.RateLimitError):
        litellm.completion(**_asked(url, "overload"))
    with raises(Exception) as broken:
        list(litellm.completion(**_asked(url, "boom"), stream=True))
    assert "Internal error" in str(broken.exception)
