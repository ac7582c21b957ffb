"""The token endpoints of vLLM and llama.cpp for texts and chats."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from echo_model import EchoModel, serving

from freedive.server.model_info import ModelInfo

CHAT = [{"role": "user", "content": "hi"}]


def tokens(text: str) -> list[int]:
    return [ord(char) for char in text]


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"prompt": "hä"}, "hä"),
        ({"content": ""}, ""),
        ({"model": "echo", "content": "hä", "add_special": True, "parse_special": False}, "hä"),
        ({"messages": CHAT, "add_special_tokens": False}, "user: hi"),
    ],
)
def test_texts_and_chats_have_tokens(http: httpx.Client, asked: dict[str, Any], text: str) -> None:
    assert http.post("/tokenize", json=asked).json() == {
        "count": len(text),
        "max_model_len": 4096,
        "tokens": tokens(text),
        "token_strs": None,
    }


def test_special_tokens_are_added_to_prompts_only_unless_asked(
    http: httpx.Client, fake_model: EchoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: object, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        return [2 * add_special + parse_special]

    monkeypatch.setattr(type(fake_model.tokenizer), "encode", encode)

    def how(**asked: Any) -> int:
        return http.post("/tokenize", json=asked).json()["tokens"][0]

    assert (how(prompt="x"), how(content="x")) == (3, 1)
    assert (how(prompt="x", add_special_tokens=False), how(content="x", add_special=True)) == (1, 3)
    assert how(content="x", parse_special=False) == 0


def test_tokens_can_be_returned_with_their_text(http: httpx.Client) -> None:
    assert http.post("/tokenize", json={"prompt": "hä", "return_token_strs": True}).json()["token_strs"] == ["h", "ä"]
    pieces = http.post("/tokenize", json={"content": "hä", "with_pieces": True}).json()["tokens"]
    assert pieces == [{"id": 104, "piece": "h"}, {"id": 228, "piece": "ä"}]


def test_special_tokens_and_the_template_are_told_to_clients_that_tokenize_here() -> None:
    told = EchoModel(about=ModelInfo(template="{{ messages }}"))
    bare = EchoModel(name="bare")
    end = {"eos_token": "\N{END OF TRANSMISSION}"}
    with serving(told) as url:
        assert httpx.get(f"{url}/tokenizer_info").json() == end | {"chat_template": "{{ messages }}"}
    with serving(told, bare) as url:
        for name, status in (("bare", 200), ("", 400), ("absent", 404)):
            answer = httpx.get(f"{url}/tokenizer_info", params={"model": name})
            assert answer.status_code == status
            assert status != 200 or answer.json() == end | {"chat_template": None}


def test_tools_and_template_variables_reach_the_template(http: httpx.Client, fake_model: EchoModel) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}, "strict": False}}
    http.post("/tokenize", json={"messages": CHAT, "tools": [tool], "chat_template_kwargs": {"enable_thinking": False}})
    assert fake_model.asked[-1]["tools"] == [tool]
    assert fake_model.asked[-1]["template_kwargs"] == {"enable_thinking": False}


def test_fields_of_chats_are_reported_as_ignored_with_a_text(http: httpx.Client) -> None:
    fields = {"tools": [], "add_generation_prompt": True}
    answer = http.post("/tokenize", json={"content": "x", "parse_special": True, **fields})
    assert answer.headers["X-Freedive-Ignored"] == "add_generation_prompt, tools"
    asked = http.post("/tokenize", json={"messages": CHAT, **fields})
    assert (asked.status_code, "X-Freedive-Ignored" in asked.headers) == (200, False)


def test_tokens_become_text_again(http: httpx.Client) -> None:
    text = http.post("/detokenize", json={"tokens": tokens("hä")}).json()
    assert text == {"prompt": "hä", "content": "hä"}


def test_a_chat_is_rendered_as_it_would_be_asked(http: httpx.Client) -> None:
    rendered = http.post("/v1/chat/completions/render", json={"model": "echo", "messages": CHAT}).json()
    assert rendered == {"prompt": "user: hi", "tokens": tokens("user: hi"), "count": len("user: hi")}


@pytest.mark.parametrize("field", ["n_predict", "max_tokens", "max_completion_tokens", "temperature", "top_p"])
@pytest.mark.parametrize("value", [-5, 1 << 63])
def test_a_chat_that_could_not_be_asked_is_not_rendered(http: httpx.Client, field: str, value: int) -> None:
    asked = {"model": "echo", "messages": CHAT, field: value}
    answers = [http.post(path, json=asked) for path in ("/v1/chat/completions", "/v1/chat/completions/render")]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json() == answers[1].json()


@pytest.mark.parametrize(
    ("route", "asked", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "content": "b"}, "prompt"),
        ("/tokenize", {"messages": CHAT, "add_special": True}, "add_special"),
        ("/tokenize", {"messages": CHAT, "parse_special": False}, "parse_special"),
        ("/tokenize", {"messages": CHAT, "chat_template": "{{ x }}"}, "chat_template"),
        ("/tokenize", {"messages": CHAT, "continue_final_message": True}, "messages"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**9]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens.0"),
    ],
)
def test_invalid_requests_are_refused(http: httpx.Client, route: str, asked: dict[str, Any], param: str) -> None:
    response = http.post(route, json=asked)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_where_there_are_more_models_one_must_be_named() -> None:
    with serving(EchoModel("a"), EchoModel("b")) as url:
        unnamed = httpx.post(f"{url}/tokenize", json={"prompt": "x"})
        assert (unnamed.status_code, unnamed.json()["error"]["param"]) == (400, "model")
        assert "Choose one of a, b" in unnamed.json()["error"]["message"]
        assert httpx.post(f"{url}/tokenize", json={"prompt": "x", "model": "b"}).json()["tokens"] == [120]
