"""Fields of Ollama's API that this server does not support are refused by name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from echo_model import EchoModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ollama_setup import HELLO
from test_bad_requests import values

from freedive.server.ollama.fields import ChatRequest, GenerateRequest
from freedive.server.ollama.options import Options

CHAT = {"model": "echo", "messages": HELLO}
TEXT = {"model": "echo", "prompt": "hello"}


@pytest.mark.parametrize(
    ("route", "extra", "param"),
    [
        ("chat", {"format": "yaml"}, "format"),
        ("generate", {"format": "json", "suffix": "x"}, "format"),
        ("chat", {"think": "hard"}, "think"),
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "images"),
        ("chat", {"messages": [{"role": "user", "tool_calls": [{"function": {"name": "f"}}]}]}, "tool_calls"),
        ("chat", {"messages": [{"role": "teacher", "content": "x"}]}, "role"),
        ("chat", {"tools": [{"type": "function", "function": {"name": "f g"}}]}, "name"),
        ("chat", {"top_logprobs": 2}, "top_logprobs"),
        ("chat", {"keep_alive": "soon"}, "keep_alive"),
        ("chat", {"keep_alive": "5"}, "keep_alive"),
        ("chat", {"prompt": "x"}, "prompt"),
        ("chat", {"options": {"temprature": 1}}, "temprature"),
        ("chat", {"options": {"num_ctx": 5}}, "num_ctx"),
        ("chat", {"options": {"repeat_penalty": -1}}, "repeat_penalty"),
        ("embed", {"input": "hello", "options": {"num_ctx": 2}}, "num_ctx"),
        ("chat", {"options": {"num_predict": 2**31}}, "num_predict"),
        ("generate", {"images": ["aGk="]}, "images"),
        ("generate", {"context": [1, 2]}, "context"),
        ("generate", {"template": "{{ .Prompt }}"}, "template"),
        ("generate", {"raw": True, "system": "x"}, "system"),
        ("generate", {"suffix": "x", "think": True}, "think"),
        ("generate", {"width": 64}, "width"),
        ("show", {"system": "x"}, "system"),
        ("show", {"model": ""}, "model"),
        ("pull", {"insecure": True}, "insecure"),
    ],
)
def test_unsupported_fields_are_refused_by_name(
    http: httpx.Client, route: str, extra: dict[str, Any], param: str
) -> None:
    body = {"chat": CHAT, "generate": TEXT}.get(route, {"model": "echo"}) | extra
    response = http.post(f"/api/{route}", json=body)
    assert response.status_code == 400, response.text
    assert response.json().keys() == {"error"}
    assert param in response.json()["error"]


def test_fields_without_effect_are_accepted(http: httpx.Client) -> None:
    options = {
        "mirostat": 0,
        "mirostat_tau": 5.0,
        "typical_p": 1.0,
        "num_keep": 4,
        "repeat_last_n": -1,
        "use_mmap": True,
    }
    nothing = {"format": "", "images": [], "context": [], "template": "", "truncate": False, "options": options}
    assert http.post("/api/generate", json=TEXT | nothing).status_code == 200


def test_strings_that_cannot_be_encoded_are_refused(http: httpx.Client) -> None:
    call = {"function": {"name": "f", "arguments": {"a": "\ud800"}}}
    body = json.dumps(CHAT | {"messages": [{"role": "assistant", "tool_calls": [call]}]})
    response = http.post("/api/chat", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, "arguments" in response.json()["error"]) == (400, True)


fields = sorted(ChatRequest.model_fields | GenerateRequest.model_fields)
options = st.fixed_dictionaries({"options": st.dictionaries(st.sampled_from(sorted(Options.model_fields)), values)})


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([CHAT, TEXT]), st.dictionaries(st.sampled_from(fields), values, max_size=3) | options)
def test_no_body_is_a_server_error(
    http: httpx.Client, fake_model: EchoModel, valid: dict[str, Any], changes: dict[str, Any]
) -> None:
    fake_model.delay_s = 0
    body = json.dumps({"stream": False} | valid | changes)
    for route in ("chat", "generate", "show"):
        response = http.post(f"/api/{route}", content=body, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400, 404)
        assert response.status_code == 200 or response.json().keys() == {"error"}
