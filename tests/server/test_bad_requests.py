"""For any request the answer is valid or an error object with the right status, and the server stays alive."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from echo_model import EchoGeneration, EchoModel, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freedive.config import ServerConfig
from freedive.engine.generation import TokenOutput
from freedive.errors import UserError
from freedive.server.openai.fields import ChatRequest, CompletionRequest

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "echo", "prompt": "hi"}


def refusal(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools.0.function.name"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"response_format": {"type": "regex"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"reasoning_effort": "highest"}, "reasoning_effort"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"stop": [1]}, "stop.0"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream": True, "stream_options": {"include": 1}}, "include"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "teacher", "content": "x"}]}, "messages.0.role"),
        ({"continue_final_message": True}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "prefix": True}]}, "prefix"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        ({"user_id": "\ud800"}, "user_id"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": "\ud800"}}, "chat_template_kwargs"),
        ({"guided_regex": "a", "response_format": {"type": "text"}}, "guided_regex"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"n_predict": 3, "max_tokens": 4}, "max_tokens"),
        ({"n_predict": "3"}, "n_predict"),
        ({"n_predict": -5}, "n_predict"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"repeat_penalty": 101}, "repeat_penalty"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"cache_salt": "\ud800"}, "cache_salt"),
        ({"\ud800": 1}, "\ud800"),
    ],
)
def test_unsupported_fields_are_refused_by_name(http: httpx.Client, extra: dict[str, Any], param: str) -> None:
    headers = {"content-type": "application/json"}
    error = refusal(http.post("/v1/chat/completions", content=json.dumps(CHAT | extra), headers=headers))
    assert error["param"] == param
    assert param.rpartition(".")[2].strip("[]") in error["message"] or param in error["message"]


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"prompt": [5], "suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"messages": []}, "messages"),
    ],
)
def test_completions_refuse_by_name_too(http: httpx.Client, extra: dict[str, Any], param: str) -> None:
    assert refusal(http.post("/v1/completions", json=TEXT | extra))["param"] == param


NOWHERE = {"$ref": "#/nowhere"}


@pytest.mark.parametrize(
    ("route", "extra", "param"),
    [
        ("/v1/chat/completions", {"guided_json": NOWHERE}, "guided_json"),
        ("/v1/chat/completions", {"structured_outputs": {"json": NOWHERE}}, "structured_outputs"),
        ("/v1/completions", {"json_schema": NOWHERE}, "json_schema"),
        ("/v1/responses", {"text": {"format": {"type": "json_schema", "name": "a", "schema": NOWHERE}}}, "text"),
    ],
)
def test_a_fault_found_later_names_the_field_as_the_client_does(
    http: httpx.Client,
    fake_model: EchoModel,
    monkeypatch: pytest.MonkeyPatch,
    route: str,
    extra: dict[str, Any],
    param: str,
) -> None:
    def prepare(_: object) -> None:
        raise UserError("The schema refers to nothing", param="response_format")

    monkeypatch.setattr(fake_model, "prepare", prepare)
    asked = {"/v1/chat/completions": CHAT, "/v1/completions": TEXT}.get(route, {"model": "echo", "input": "hi"})
    assert refusal(http.post(route, json=asked | extra))["param"] == param


def test_a_fault_found_in_a_stream_names_the_field_as_the_client_does(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: object) -> AsyncIterator[TokenOutput]:
        raise UserError("response_format has become impossible", param="response_format")
        yield

    monkeypatch.setattr(EchoGeneration, "__aiter__", fails)
    with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True, "guided_json": {}}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if "error" in line]
    error = json.loads(lines[0])["error"]
    assert error["param"] == "guided_json"
    assert error["message"].startswith("guided_json has become impossible")


def test_what_is_wrong_is_told_of_the_field_not_of_a_kind_of_value(http: httpx.Client) -> None:
    error = refusal(http.post("/v1/completions", json=TEXT | {"prompt": ["a"] * 1025}))
    assert error["message"].startswith("'prompt' must have at most 1024 items")


def test_images_are_refused_as_images(http: httpx.Client) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:,"}}
    message = {"role": "user", "content": [part]}
    error = refusal(http.post("/v1/chat/completions", json=CHAT | {"messages": [message]}))
    assert "content of type 'image_url' is not supported" in error["message"]


def test_fields_without_effect_are_accepted(http: httpx.Client) -> None:
    nothing: dict[str, Any] = {"tools": [], "tool_choice": "none", "functions": None, "n": 1}
    nothing["response_format"] = {"type": "text"}
    assert http.post("/v1/chat/completions", json=CHAT | nothing).status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"null", b"[]", b'"x"', b"NaN", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"\0"],
    ids=repr,
)
def test_a_body_that_is_no_json_object(http: httpx.Client, body: bytes) -> None:
    refusal(http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"}))


def test_only_json_is_taken_so_that_foreign_pages_cannot_post(http: httpx.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        headers = {"content-type": kind, "origin": str(http.base_url).rstrip("/")}
        response = http.post("/v1/chat/completions", content=json.dumps(CHAT), headers=headers)
        assert "Content-Type" in refusal(response, 415)["message"]
        del headers["origin"]  # no browser: curl -d
        assert http.post("/v1/chat/completions", content=json.dumps(CHAT), headers=headers).status_code == 200
    assert "access-control-allow-origin" not in http.get("/v1/models", headers={"origin": "http://evil"}).headers


def test_a_body_beyond_the_limit_is_refused_before_it_is_sent(live_server: str) -> None:
    parts = urlsplit(live_server)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as raw:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Content-Length: {(32 << 20) + 1}\r\n\r\n".encode())
        assert raw.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_chunked_body_beyond_the_limit_is_refused(fake_model: EchoModel) -> None:
    chunks = iter([b" " * 600, b" " * 600])
    headers = {"content-type": "application/json"}
    with serving(fake_model, config=ServerConfig(max_body_mb=0.001)) as url:
        response = httpx.post(f"{url}/v1/completions", content=chunks, headers=headers)
    assert refusal(response, 413)["code"] == "request_too_large"


def test_unknown_routes_and_methods(http: httpx.Client) -> None:
    assert "/v2/chat" in refusal(http.get("/v2/chat"), 404)["message"]
    refusal(http.get("/v1/chat/completions"), 405)
    refusal(http.get("/static/../page.py"), 404)


def test_an_internal_error_is_a_500_with_an_id_that_the_log_has(
    http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    message = {"role": "user", "content": "untemplated"}
    response = http.post("/v1/chat/completions", json=CHAT | {"messages": [message]})
    request_id = response.headers["x-request-id"]
    assert request_id in refusal(response, 500)["message"]
    assert f"request {request_id} failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert "ZeroDivisionError" not in response.text
    assert http.get("/health").json()["status"] == "ok"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
fields = sorted(ChatRequest.model_fields | CompletionRequest.model_fields | dict.fromkeys(["tools", "suffix", "user"]))
bodies = st.tuples(st.sampled_from([CHAT, TEXT]), st.dictionaries(st.sampled_from(fields), values, max_size=3))


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(bodies | st.tuples(st.just({}), values))
def test_no_body_is_a_server_error(http: httpx.Client, fake_model: EchoModel, case: tuple[dict[str, Any], Any]) -> None:
    fake_model.delay_s = 0
    valid, changes = case
    body = json.dumps(valid | changes if isinstance(changes, dict) else changes)
    for route in ("/v1/chat/completions", "/v1/completions"):
        response = http.post(route, content=body, headers={"content-type": "application/json"})
        if response.status_code != 200:
            assert response.status_code in (400, 404)
            refusal(response, response.status_code)
