"""OpenAI's official client library against a live server."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from echo_model import EchoModel
from patience import PATIENCE_S

from freedive.text.format import Format
from freedive.text.tools import Function

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(live_server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live_server}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=HELLO)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "user: hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == answer.usage.completion_tokens == len("user: hello")
    assert answer._request_id.startswith("req-")


def test_chat_is_streamed(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="echo", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "user: hello"
    assert len(chunks) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert last.choices == []
    assert last.usage.total_tokens == 2 * len("user: hello")
    assert len({chunk.id for chunk in [*chunks, last]}) == 1


THOUGHTFUL = "<think>\nTwo and two,\nthat is.\n</think>\n\nIt is four, <think> me."


def test_thoughts_are_a_field_of_their_own(client: openai.OpenAI, fake_model: EchoModel) -> None:
    fake_model.script["two and two"] = THOUGHTFUL
    messages = [{"role": "user", "content": "two and two"}]
    message = client.chat.completions.create(model="echo", messages=messages).choices[0].message
    assert message.reasoning_content == "Two and two,\nthat is."
    assert message.content == "It is four, <think> me."
    chunks = list(client.chat.completions.create(model="echo", messages=messages, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == message.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]


def test_thoughts_that_are_cut_off_are_no_answer(client: openai.OpenAI, fake_model: EchoModel) -> None:
    fake_model.script["two and two"] = THOUGHTFUL
    messages = [{"role": "user", "content": "two and two"}]
    choice = client.chat.completions.create(model="echo", messages=messages, max_tokens=11).choices[0]
    assert (choice.message.reasoning_content, choice.message.content) == ("Two", "")
    assert choice.finish_reason == "length"


def test_chat_accepts_parts_roles_and_labels(client: openai.OpenAI) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "assistant", "content": "ok", "reasoning_content": "hm", "refusal": None, "tool_calls": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    answer = client.chat.completions.create(
        model="echo", messages=messages, user="u", metadata={"k": "v"}, store=False, temperature=None
    )
    assert answer.choices[0].message.content == "system: be brief\nassistant: ok\nuser: a\nb"


def test_sampling_reaches_the_engine(client: openai.OpenAI, fake_model: EchoModel) -> None:
    client.chat.completions.create(
        model="echo",
        messages=HELLO,
        max_completion_tokens=7,
        max_tokens=3,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={"65": 2},
        seed=11,
        stop="zz",
        response_format={"type": "text"},
        extra_body={"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.1, "ignore_eos": True},
    )
    sampling = fake_model.engine.generations[-1].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (7, 0.5, 0.9, 5)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.1, 0.2, 1.1)
    assert (sampling.min_p, sampling.logit_bias, sampling.seed, sampling.stop) == (0.05, {65: 2}, 11, ("zz",))
    assert sampling.ignore_eos
    assert sampling.logprobs is None


def test_stop_and_length_are_different_finish_reasons(client: openai.OpenAI) -> None:
    stopped = client.chat.completions.create(model="echo", messages=HELLO, stop=["lo", "never"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("user: hel", "stop")
    cut = client.chat.completions.create(model="echo", messages=HELLO, max_tokens=4)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("user", "length")


def test_choices_are_separate_and_differently_seeded(client: openai.OpenAI, fake_model: EchoModel) -> None:
    answer = client.chat.completions.create(model="echo", messages=HELLO, n=3, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.prompt_tokens == len("user: hello")
    assert answer.usage.completion_tokens == 3 * len("user: hello")
    assert [generation.sampling.seed for generation in fake_model.engine.generations[-3:]] == [5, 6, 7]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(model="echo", messages=HELLO, n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["user: hello"] * 3


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=2)
    content = answer.choices[0].logprobs.content
    assert [entry.token for entry in content] == ["u", "s"]
    assert content[0].bytes == [117]
    assert [(top.token, top.logprob) for top in content[1].top_logprobs] == [("s", -0.25), ("?", -1.5)]
    assert math.isclose(content[0].logprob, -0.25)


def test_completions_of_text_ids_and_lists(client: openai.OpenAI) -> None:
    def texts(**options: object) -> list[str]:
        return [choice.text for choice in client.completions.create(model="echo", max_tokens=50, **options).choices]

    assert texts(prompt="once") == ["once"]
    assert texts(prompt=["a", "b"], n=2) == ["a", "a", "b", "b"]
    assert texts(prompt=[104, 105]) == ["hi"]
    assert texts(prompt=[[104], [105]]) == ["h", "i"]
    assert texts(prompt="once ", echo=True) == ["once once "]
    assert texts(prompt=[104, 105], echo=True, best_of=1) == ["hihi"]


def test_completions_stream_and_default_to_sixteen_tokens(client: openai.OpenAI) -> None:
    stream = list(client.completions.create(model="echo", prompt="x" * 40, stream=True, echo=True))
    assert "".join(chunk.choices[0].text for chunk in stream) == "x" * 56
    assert stream[-1].choices[0].finish_reason == "length"


def test_completion_logprobs(client: openai.OpenAI) -> None:
    logprobs = client.completions.create(model="echo", prompt="abc", logprobs=1).choices[0].logprobs
    assert logprobs.tokens == ["a", "b", "c"]
    assert logprobs.text_offset == [0, 1, 2]
    assert logprobs.top_logprobs == [{"a": -0.25}, {"b": -0.25}, {"c": -0.25}]


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").created == 1_700_000_000


def test_an_unknown_model_is_not_found_and_the_loaded_are_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="Served models: echo") as caught:
        client.chat.completions.create(model="gpt-99", messages=HELLO)
    assert caught.value.param == "model"
    assert caught.value.code == "not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/none")


def test_a_prompt_beyond_the_context_has_its_own_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="5000 tokens") as caught:
        client.completions.create(model="echo", prompt="x" * 5000, stream=True)
    assert caught.value.code == "context_length_exceeded"


def test_overload_is_a_rate_limit(client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(model="echo", prompt="overload")
    assert caught.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_failure_is_reported_and_the_server_continues(
    client: openai.OpenAI, fake_model: EchoModel, stream: bool
) -> None:
    fake_model.script["boom"] = "ab\N{COLLISION SYMBOL}"
    with pytest.raises(openai.APIError, match="the server's log has it as"):
        list(client.completions.create(model="echo", prompt="boom", stream=stream))
    assert client.completions.create(model="echo", prompt="alive").choices[0].text == "alive"


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnected_client_frees_the_engine(client: openai.OpenAI, fake_model: EchoModel, stream: bool) -> None:
    fake_model.script["endless"] = "word " * 5000
    if stream:
        answer = client.completions.create(model="echo", prompt="endless", max_tokens=20000, stream=True)
        next(iter(answer))
        answer.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            client.completions.create(model="echo", prompt="endless", max_tokens=20000, timeout=1)
    assert fake_model.engine.generations[-1].cancelled.wait(PATIENCE_S)  # never if it had ended


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALLING = 'Let me see.\n<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'


def test_tool_calls_come_whole_and_streamed(client: openai.OpenAI, fake_model: EchoModel) -> None:
    fake_model.script["rain?"] = CALLING
    asked = {"model": "echo", "messages": [{"role": "user", "content": "rain?"}], "tools": [WEATHER]}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Köln"}
    assert fake_model.asked[-1]["tools"][0]["function"]["name"] == "weather"
    with client.chat.completions.stream(**asked) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls[0].function.name == "weather"
    assert message.content == "Let me see."


def test_without_tools_what_looks_like_a_call_is_text(client: openai.OpenAI, fake_model: EchoModel) -> None:
    fake_model.script["rain?"] = CALLING
    messages = [{"role": "user", "content": "rain?"}]
    for options in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        choice = client.chat.completions.create(model="echo", messages=messages, **options).choices[0]
        assert (choice.message.content, choice.finish_reason) == (CALLING, "stop")


def test_calls_and_their_results_reach_the_template(client: openai.OpenAI, fake_model: EchoModel) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
    messages = [
        {"role": "user", "content": "and now?"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    client.chat.completions.create(model="echo", messages=messages)
    assert fake_model.asked[-1]["messages"] == [
        messages[0],
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]},
        messages[2],
    ]


@pytest.mark.parametrize(
    ("asked", "thinking", "effort"),
    [
        ({}, None, None),
        ({"extra_body": {"thinking": {"type": "disabled"}}}, False, "none"),
        ({"extra_body": {"thinking": {"type": "enabled"}}}, True, None),
        ({"reasoning_effort": "high"}, None, "high"),
    ],
)
def test_thinking_is_asked_of_the_model(
    client: openai.OpenAI, fake_model: EchoModel, asked: dict[str, Any], thinking: bool | None, effort: str | None
) -> None:
    client.chat.completions.create(model="echo", messages=HELLO, **asked)
    assert (fake_model.asked[-1]["thinking"], fake_model.asked[-1]["effort"]) == (thinking, effort)


def test_a_prefix_is_continued(client: openai.OpenAI, fake_model: EchoModel) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Hel", "prefix": True}]
    client.chat.completions.create(model="echo", messages=messages)
    assert fake_model.asked[-1]["continue_final_message"]


def test_a_suffix_requests_infilling(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt="def f(", suffix="): pass")
    assert answer.choices[0].text == "def f([gap]): pass"[:16]


def test_deepseek_s_addresses_work_too(live_server: str) -> None:
    for base in ("", "/beta"):
        with openai.OpenAI(base_url=f"{live_server}{base}", api_key="none", max_retries=0) as client:
            answer = client.chat.completions.create(model="echo", messages=HELLO)
            assert answer.usage.prompt_cache_hit_tokens == 0
            assert answer.usage.prompt_cache_miss_tokens == len("user: hello")
            assert [model.id for model in client.models.list()] == ["echo"]


def test_timings_are_an_option(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=HELLO, extra_body={"timings": True})
    assert answer.timings["predicted_n"] == len("user: hello")
    stream = client.chat.completions.create(model="echo", messages=HELLO, stream=True, extra_body={"timings": True})
    assert list(stream)[-1].timings["predicted_n"] == len("user: hello")


def test_thoughts_are_counted(client: openai.OpenAI, fake_model: EchoModel) -> None:
    fake_model.script["two and two"] = THOUGHTFUL
    answer = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "two and two"}])
    thought = THOUGHTFUL.index("</think>") + len("</think>") - len("<think>")
    assert answer.usage.completion_tokens_details.reasoning_tokens == thought


def test_embeddings_of_one_and_several_texts(client: openai.OpenAI, fake_model: EchoModel) -> None:
    for options in ({"encoding_format": "float"}, {}):  # without it the client asks for base64
        answer = client.embeddings.create(model="echo", input=["area", "sky", [115, 107]], **options)
        assert [entry.embedding for entry in answer.data] == [[4, 1], [3, 3], [2, 2]]
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == 9
    client.embeddings.create(model="echo", input="sky", extra_body={"pooling": "last"})
    assert fake_model.engine.generations[-1].submitted["pooling"] == "last"
    with pytest.raises(openai.BadRequestError, match="'dimensions' is not supported"):
        client.embeddings.create(model="echo", input="sky", dimensions=3)


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("asked", "format"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Format("json_object")),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}, Format("json_schema", SCHEMA)),
        ({"type": "regex", "regex": "a+"}, Format("regex", "a+")),
        ({"type": "choice", "choice": ["a", "b"]}, Format("choice", ["a", "b"])),
    ],
)
def test_formats_reach_the_model(
    client: openai.OpenAI, fake_model: EchoModel, asked: dict[str, Any], format: Format | None
) -> None:
    client.chat.completions.create(model="echo", messages=HELLO, response_format=asked)
    assert fake_model.asked[-1]["format"] == format
    client.completions.create(model="echo", prompt="x", extra_body={"response_format": asked})
    assert fake_model.engine.generations[-1].submitted["constraint"] == format


def test_choices_of_tools_reach_the_model(client: openai.OpenAI, fake_model: EchoModel) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    for asked, choice in (("required", "required"), (named, Function("weather")), ("auto", "auto")):
        client.chat.completions.create(
            model="echo", messages=HELLO, tools=[WEATHER], tool_choice=asked, parallel_tool_calls=False
        )
        question = fake_model.asked[-1]
        assert (question["tool_choice"], question["parallel_tool_calls"]) == (choice, False)
