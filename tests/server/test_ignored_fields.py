"""Fields without effect are accepted; a header and the log name them."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import pytest
from echo_model import EchoModel, serving

from freedive.server.log import line_log

HELLO = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "echo", "messages": HELLO},
    "/v1/completions": {"model": "echo", "prompt": "hello"},
    "/v1/responses": {"model": "echo", "input": "hello"},
    "/v1/messages": {"model": "echo", "max_tokens": 99, "messages": HELLO},
    "/api/chat": {"model": "echo", "messages": HELLO, "stream": False},
    "/api/generate": {"model": "echo", "prompt": "hello", "stream": False},
    "/api/embed": {"model": "echo", "input": "hello"},
}
CHAT, TEXT, RESPONSES, MESSAGES, OLLAMA, GENERATE, EMBED = BODIES
SPOKEN = {"role": "assistant", "content": "hm"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USED = {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}


def ignored(response: httpx.Response) -> set[str]:
    assert response.status_code == 200, response.text
    return set(filter(None, response.headers.get("x-freedive-ignored", "").split(", ")))


NOTHING: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"best_of": 1, "min_tokens": 0, "typical_p": 1, "length_penalty": 1.0, "use_beam_search": False}),
    (CHAT, {"truncate_prompt_tokens": None, "skip_special_tokens": True, "spaces_between_special_tokens": True}),
    (CHAT, {"add_generation_prompt": True, "seed": -1, "top_a": 0, "mirostat": 0, "stop_token_ids": [], "echo": False}),
    (CHAT, {"reasoning": {"enabled": False}, "functions": [], "modalities": ["text"], "documents": []}),
    (CHAT, {"messages": [*HELLO, {"role": "assistant", "content": None}, *HELLO]}),
    (CHAT, {"messages": [*HELLO, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "x"}]}),
    (CHAT, {"messages": [*HELLO, SPOKEN | {"audio": None, "refusal": None, "reasoning_details": None}, *HELLO]}),
    (TEXT, {"best_of": 1, "suffix": None, "n_predict": 9, "repeat_penalty": 1.1, "xtc_probability": 0}),
    (RESPONSES, {"truncation": "auto", "background": False, "include": ["web_search_call.action.sources"]}),
    (RESPONSES, {"input": [], "instructions": "hello"}),
    (RESPONSES, {"text": {"verbosity": "low"}, "reasoning": {"effort": "low", "summary": "auto"}}),
    (MESSAGES, {"thread": {"type": "create"}, "mcp_servers": [], "safeguards": []}),
    (OLLAMA, {"messages": [HELLO[0] | {"images": []}], "think": "high", "options": {"seed": -1, "num_predict": -2}}),
    (GENERATE, {"images": [], "context": [], "template": "", "system": "", "suffix": "", "format": ""}),
]


@pytest.mark.parametrize(("route", "extra"), NOTHING)
def test_fields_that_ask_for_nothing_are_accepted_silently(
    http: httpx.Client, route: str, extra: dict[str, Any]
) -> None:
    assert ignored(http.post(route, json=BODIES[route] | extra)) == set()


WEB_SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}

SAID: list[tuple[str, dict[str, Any], set[str]]] = [
    (CHAT, {"client_metadata": {"a": "b"}, "cache_prompt": True, "id_slot": 1}, set()),
    (CHAT, {"include_reasoning": False, "priority": 3, "stream_options": {"include_usage": True}}, set()),
    (CHAT, {"provider": {"order": ["x"]}, "repeat_last_n": 64, "penalize_nl": False}, set()),
    (CHAT, {"num_ctx": 4096, "num_batch": 512, "num_keep": 24, "num_gpu": 99, "num_thread": 4}, set()),
    (TEXT, {"use_mmap": True, "use_mlock": False, "keep_alive": "5m", "num_ctx": 4096}, set()),
    (CHAT, {"tools": [{"type": "web_search"}, {"type": "openrouter:web_search"}]}, {"tools.web_search"}),
    (RESPONSES, {"client_metadata": {"a": "b"}, "prompt_cache_retention": "24h"}, set()),
    (RESPONSES, {"context_management": [{"type": "compaction", "compact_threshold": 9}]}, set()),
    (RESPONSES, {"tools": [{"type": kind} for kind in ("local_shell", "mcp", "x_new")]}, {"tools.mcp"}),
    (RESPONSES, {"tools": [{"type": "namespace", "name": "n", "tools": []}]}, set()),
    (MESSAGES, {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, set()),
    (MESSAGES, {"speed": "fast", "container": {"id": "c"}, "inference_geo": "us", "betas": ["b"]}, set()),
    (
        MESSAGES,
        {"tools": [WEB_SEARCH, {"name": "f", "input_schema": {"type": "object"}}]},
        {"tools.web_search_20250305"},
    ),
    (OLLAMA, {"truncate": True, "shift": True}, set()),
    (GENERATE, {"truncate": False, "shift": False}, set()),
    (EMBED, {"truncate": True, "dimensions": 0}, {"truncate"}),
]


@pytest.mark.parametrize(("route", "extra", "names"), SAID)
def test_fields_without_effect_are_accepted_and_named(
    http: httpx.Client, route: str, extra: dict[str, Any], names: set[str]
) -> None:
    said = ignored(http.post(route, json=BODIES[route] | extra))
    assert said >= (names or extra.keys() - {"tools"})


def test_a_search_on_its_own_is_refused_since_any_answer_would_pass_for_its_result(http: httpx.Client) -> None:
    for route in (MESSAGES, f"{MESSAGES}/count_tokens"):
        refused = http.post(route, json={"model": "echo", "messages": HELLO, "tools": [WEB_SEARCH]})
        assert (refused.status_code, "this server runs none" in refused.text) == (400, True)


def test_ollamas_documented_options_are_accepted(http: httpx.Client) -> None:
    options = {
        "num_keep": 5,
        "seed": 42,
        "num_predict": 100,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.0,
        "typical_p": 0.7,
        "repeat_last_n": 33,
        "temperature": 0.8,
        "repeat_penalty": 1.2,
        "presence_penalty": 1.5,
        "frequency_penalty": 1.0,
        "penalize_newline": True,
        "mirostat": 2,
        "stop": ["\n", "user:"],
        "numa": False,
        "num_ctx": 1024,
        "num_batch": 2,
        "num_gpu": 1,
        "main_gpu": 0,
        "use_mmap": True,
        "num_thread": 8,
    }
    said = ignored(http.post(OLLAMA, json=BODIES[OLLAMA] | {"options": options}))
    assert said >= {"mirostat", "num_gpu", "penalize_newline", "repeat_last_n", "typical_p"}
    assert not said & {"min_p", "num_ctx", "repeat_penalty", "seed", "stop", "temperature", "top_k", "top_p"}


KEPT = {
    "id": "m1",
    "timestamp": 1,
    "parsed": {"a": 1},
    "cache_control": {"type": "ephemeral"},
    "extra_content": {"google": {}},
    "reasoning_details": [{"type": "x"}],
    "provider_specific_fields": {},
    "refusal": "no",
}


def test_keys_that_a_client_kept_with_an_answer_may_come_back(http: httpx.Client, fake_model: EchoModel) -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": {"a": "ä"}, "parsed_arguments": {}}, "x": 1}
    spoken = KEPT | {"role": "assistant", "content": [{"type": "text", "text": "hm", "annotations": []}]}
    result = {"role": "tool", "tool_call_id": None, "content": "42", "is_error": False}
    messages = [*HELLO, spoken | {"tool_calls": [call]}, result]
    assert ignored(http.post(CHAT, json=BODIES[CHAT] | {"messages": messages})) >= KEPT.keys()
    _, told, answered = fake_model.asked[-1]["messages"]
    assert told["tool_calls"][0]["function"]["arguments"] == '{"a": "ä"}'
    assert (told["content"], answered["tool_call_id"]) == ("hm", "c1")


@pytest.mark.parametrize("route", [CHAT, RESPONSES, MESSAGES, OLLAMA])
def test_an_image_of_a_conversation_under_way_becomes_a_text_that_names_it(
    http: httpx.Client, fake_model: EchoModel, route: str
) -> None:
    url = "data:image/png;base64,AA=="
    source = {"type": "base64", "media_type": "image/png", "data": "AA=="}
    image = {
        CHAT: {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]},
        RESPONSES: {"role": "user", "content": [{"type": "input_image", "image_url": url}]},
        MESSAGES: {"role": "user", "content": [{"type": "image", "source": source}]},
        OLLAMA: {"role": "user", "content": "", "images": ["AA=="]},
    }[route]
    name = "input" if route == RESPONSES else "messages"
    first = http.post(route, json=BODIES[route] | {name: [image]})
    assert first.status_code == 400, "in a first turn nothing is lost, and nobody is answered who was not understood"
    assert "image" in first.text
    assert ignored(http.post(route, json=BODIES[route] | {name: [*HELLO, SPOKEN, image]})) == {"image"}
    assert fake_model.asked[-1]["messages"][-1]["content"] == "[image: this model cannot see it]"


@pytest.mark.parametrize("route", [CHAT, RESPONSES, MESSAGES, OLLAMA])
def test_an_image_in_an_agents_first_message_does_not_end_its_session(
    http: httpx.Client, fake_model: EchoModel, route: str
) -> None:
    """As long as no message is answered, Claude Code adds the user's next words to the first message."""
    url = "data:image/png;base64,AA=="
    source = {"type": "base64", "media_type": "image/png", "data": "AA=="}
    function = {"name": "f", "parameters": {"type": "object"}}
    image, tool = {
        CHAT: ({"type": "image_url", "image_url": {"url": url}}, {"type": "function", "function": function}),
        RESPONSES: ({"type": "input_image", "image_url": url}, {"type": "function", **function}),
        MESSAGES: ({"type": "image", "source": source}, {"name": "f", "input_schema": {"type": "object"}}),
        OLLAMA: ("AA==", {"type": "function", "function": function}),
    }[route]
    kind = "input_text" if route == RESPONSES else "text"
    said: dict[str, Any] = {"role": "user", "content": [image, {"type": kind, "text": "never mind"}]}
    if route == OLLAMA:
        said = {"role": "user", "content": "never mind", "images": [image]}
    name = "input" if route == RESPONSES else "messages"
    assert "image" in ignored(http.post(route, json=BODIES[route] | {name: [said], "tools": [tool]}))
    texts = fake_model.asked[-1]["messages"][-1]["content"].split("\n")
    assert sorted(texts) == ["[image: this model cannot see it]", "never mind"]


def test_an_image_that_a_tool_gave_becomes_a_text_that_names_it(http: httpx.Client, fake_model: EchoModel) -> None:
    for kind in ("image", "document"):
        block = {"type": kind, "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
        result = {"type": "tool_result", "tool_use_id": "1", "content": [block]}
        messages = [*HELLO, USED, {"role": "user", "content": [result]}]
        assert ignored(http.post(MESSAGES, json=BODIES[MESSAGES] | {"messages": messages})) == {kind}
        assert fake_model.asked[-1]["messages"][-1]["content"] == f"[{kind}: this model cannot see it]"
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    image = {"type": "input_image", "image_url": "data:,"}
    output = {"type": "function_call_output", "call_id": "c", "output": [image]}
    assert "image" in ignored(http.post(RESPONSES, json=BODIES[RESPONSES] | {"input": [*HELLO, call, output]}))
    assert fake_model.asked[-1]["messages"][-1]["content"] == "[image: this model cannot see it]"


TEXTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
HOLDING_TEXT = [
    ({"type": "search_result", "title": "T", "source": "S", "content": TEXTS, "citations": {}}, "T\nS\na\nb"),
    ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a\nb"}}, "a\nb"),
    (
        {"type": "document", "title": "T", "context": "C", "source": {"type": "content", "content": TEXTS}},
        "T\nC\na\nb",
    ),
    ({"type": "document", "title": None, "source": {"type": "content", "content": "a"}}, "a"),
]


@pytest.mark.parametrize(("block", "text"), HOLDING_TEXT)
def test_a_block_that_holds_text_is_read(
    http: httpx.Client, fake_model: EchoModel, block: dict[str, Any], text: str
) -> None:
    result = {"type": "tool_result", "tool_use_id": "1", "content": [block]}
    for before, given in (([], block), ([*HELLO, SPOKEN], block), ([*HELLO, USED], result)):
        said = {"messages": [*before, {"role": "user", "content": [given]}]}
        assert ignored(http.post(MESSAGES, json=BODIES[MESSAGES] | said)) == {"citations"} & block.keys()
        assert fake_model.asked[-1]["messages"][-1]["content"] == text


@pytest.mark.parametrize(
    "block",
    [
        {"type": "search_result", "title": "T", "source": {"type": "text", "data": "a"}, "content": TEXTS},
        {"type": "search_result", "source": "S", "content": 1},
        {"type": "search_result", "source": "S", "content": [{"type": "text", "text": 1}]},
        {"type": "search_result", "source": "S", "content": [{"type": "text"}]},
        {"type": "search_result", "source": ["S"], "content": TEXTS},
        {"type": "search_result", "source": "S", "title": 1, "content": TEXTS},
        {"type": "search_result", "source": "S", "content": [*TEXTS, {"type": "image"}]},
        {"type": "document", "source": {"type": "base64", "data": "AA=="}},
        {"type": "document", "source": {"type": "text", "data": {}}},
        {"type": "document", "source": {"type": [], "data": "a"}},
        {"type": "document"},
    ],
)
def test_a_block_that_does_not_hold_text_alone_is_refused(http: httpx.Client, block: dict[str, Any]) -> None:
    refused = http.post(MESSAGES, json=BODIES[MESSAGES] | {"messages": [{"role": "user", "content": [block]}]})
    assert (refused.status_code, block["type"] in refused.text) == (400, True)


def test_what_is_not_read_of_a_document_is_reported(http: httpx.Client, fake_model: EchoModel) -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "a", "language": "en"}
    block = {"type": "document", "source": source, "content": TEXTS}
    asked = {"messages": [{"role": "user", "content": [block]}]}
    assert ignored(http.post(MESSAGES, json=BODIES[MESSAGES] | asked)) == {"content", "language"}
    assert fake_model.asked[-1]["messages"][-1]["content"] == "a"


def test_an_image_in_a_document_hides_no_text(http: httpx.Client, fake_model: EchoModel) -> None:
    content = [*TEXTS, {"type": "image", "source": {}}]
    document = {"type": "document", "title": "T", "source": {"type": "content", "content": content}}
    result = {"type": "search_result", "title": "T", "source": "", "content": content}
    for block in (document, result):
        messages = [*HELLO, SPOKEN, {"role": "user", "content": [block]}]
        assert ignored(http.post(MESSAGES, json=BODIES[MESSAGES] | {"messages": messages})) == {"image"}
        assert fake_model.asked[-1]["messages"][-1]["content"] == "T\na\nb\n[image: this model cannot see it]"


def test_fields_of_texts_in_a_search_result_are_reported(http: httpx.Client) -> None:
    texts = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "citations": None}, "b"]
    block = {"type": "search_result", "title": "T", "source": "S", "content": texts}
    messages = [{"role": "user", "content": [block]}]
    assert ignored(http.post(MESSAGES, json=BODIES[MESSAGES] | {"messages": messages})) == {"cache_control"}


def test_server_tool_blocks_of_an_answer_are_omitted(http: httpx.Client, fake_model: EchoModel) -> None:
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    found = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    answer = {"role": "assistant", "content": [search, found, {"type": "text", "text": "hm", "citations": []}]}
    said = ignored(http.post(MESSAGES, json=BODIES[MESSAGES] | {"messages": [*HELLO, answer, *HELLO]}))
    assert said >= {"content.server_tool_use", "content.web_search_tool_result"}
    assert fake_model.asked[-1]["messages"][1]["content"] == "hm"
    kinds = ("web_search_call", "compaction", "ghost_snapshot", "local_shell_call")
    items = [{"type": kind, "id": "x"} for kind in kinds]
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}
    said = ignored(http.post(RESPONSES, json=BODIES[RESPONSES] | {"input": [*HELLO, *items, sealed, *HELLO]}))
    assert said >= {f"input.{kind}" for kind in kinds} | {"encrypted_content"}


def test_blocks_of_users_are_refused_in_an_answer_and_checked(http: httpx.Client) -> None:
    result = {"type": "tool_result", "tool_use_id": "1", "content": "42"}
    cases = {"is not for messages of role 'assistant'": result, "tool_use_id": result | {"tool_use_id": True}}
    for words, block in cases.items():
        messages = [*HELLO, {"role": "assistant", "content": [block]}, *HELLO]
        answer = http.post(MESSAGES, json=BODIES[MESSAGES] | {"messages": messages})
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]


def test_a_refusal_is_what_the_assistant_said(http: httpx.Client, fake_model: EchoModel) -> None:
    for route, name in ((CHAT, "messages"), (RESPONSES, "input")):
        spoken = {"role": "assistant", "content": [{"type": "refusal", "refusal": "I will not"}]}
        assert http.post(route, json=BODIES[route] | {name: [*HELLO, spoken, *HELLO]}).status_code == 200
        assert fake_model.asked[-1]["messages"][1]["content"] == "I will not"


def test_an_effort_only_advises_a_model_without_thoughts() -> None:
    model = EchoModel(can_think=False)
    with serving(model) as url:
        chat = httpx.post(url + CHAT, json=BODIES[CHAT] | {"reasoning_effort": "low"})
        routed = httpx.post(url + CHAT, json=BODIES[CHAT] | {"reasoning": {"effort": "high"}})
        responses = httpx.post(url + RESPONSES, json=BODIES[RESPONSES] | {"reasoning": {"effort": "medium"}})
    assert (ignored(chat), ignored(routed)) == ({"reasoning_effort"}, {"reasoning_effort"})
    assert ignored(responses) == {"reasoning"}
    assert [asked["effort"] for asked in model.asked] == ["low", "high", "medium"]  # the model takes it as advice


def test_thoughts_are_turned_off_by_any_servers_switch(http: httpx.Client, fake_model: EchoModel) -> None:
    for switch in (
        {"enable_thinking": False},
        {"reasoning": {"enabled": False}},
        {"thinking": {"type": "disabled"}},
        {"chat_template_kwargs": {"thinking": False}},
    ):
        assert http.post(CHAT, json=BODIES[CHAT] | switch).status_code == 200
        assert (fake_model.asked[-1]["thinking"], fake_model.asked[-1]["effort"]) == (False, "none")


def test_the_log_names_the_ignored_fields_of_a_request() -> None:
    stream = io.StringIO()
    with serving(EchoModel(), observers=[line_log("json", stream)]) as url:
        httpx.post(url + CHAT, json=BODIES[CHAT] | {"metadata": {"secret": "s"}, "verbosity": "low"})
        httpx.post(url + CHAT, json=BODIES[CHAT])
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("ignored") for line in lines] == [["metadata", "verbosity"], None]
    assert "secret" not in stream.getvalue()


def test_the_header_holds_names_alone_and_not_what_a_client_makes_of_them(http: httpx.Client) -> None:
    odd = {"a\r\nset-cookie: b": 1, "ä": 1, "x" * 100: 1, "fine": 1, **{f"n{i}": 1 for i in range(100)}}
    response = http.post(CHAT, json=BODIES[CHAT] | {"messages": [HELLO[0] | odd]})
    assert "fine" in ignored(response)
    assert len(ignored(response)) <= 32
    assert "set-cookie" not in response.headers


CUT = {"arguments": '{"a": '}


@pytest.mark.parametrize(("text", "seen"), [(CUT["arguments"], CUT), ("null", {}), ("[1]", {"arguments": "[1]"})])
def test_arguments_that_are_no_object_do_not_end_a_conversation(
    http: httpx.Client, fake_model: EchoModel, text: str, seen: Any
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": text}}
    spoken = {"role": "assistant", "tool_calls": [call]}
    assert http.post(CHAT, json=BODIES[CHAT] | {"messages": [*HELLO, spoken, *HELLO]}).status_code == 200
    assert json.loads(fake_model.asked[-1]["messages"][1]["tool_calls"][0]["function"]["arguments"]) == seen
    item = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": text}
    assert http.post(RESPONSES, json=BODIES[RESPONSES] | {"input": [*HELLO, item, *HELLO]}).status_code == 200
    assert json.loads(fake_model.asked[-1]["messages"][1]["tool_calls"][0]["function"]["arguments"]) == seen


def test_an_empty_list_has_no_vectors_and_an_empty_text_has_one(http: httpx.Client) -> None:
    nothings: tuple[Any, ...] = ([], "")
    for nothing in nothings:
        assert http.post(EMBED, json={"model": "echo", "input": nothing}).json()["embeddings"] == []
    assert len(http.post(EMBED, json={"model": "echo", "input": ["", "a"]}).json()["embeddings"]) == 2
    assert http.post("/api/embeddings", json={"model": "echo", "prompt": ""}).json() == {"embedding": []}


def test_a_context_longer_than_the_models_is_the_models(http: httpx.Client) -> None:
    options = {"num_ctx": 131072}
    assert http.post(OLLAMA, json=BODIES[OLLAMA] | {"options": options}).status_code == 200


@pytest.mark.parametrize(
    ("asked", "kind", "value"),
    [
        ({"guided_json": {"type": "object"}}, "json_schema", {"type": "object"}),
        ({"guided_json": '{"type": "object"}'}, "json_schema", {"type": "object"}),
        ({"guided_choice": ["a", "b"]}, "choice", ["a", "b"]),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"structured_outputs": {"json": {"type": "object"}}}, "json_schema", {"type": "object"}),
        ({"structured_outputs": {"json_object": True}}, "json_object", None),
    ],
)
def test_vllms_fields_for_a_form_are_honoured(
    http: httpx.Client, fake_model: EchoModel, asked: dict[str, Any], kind: str, value: Any
) -> None:
    assert ignored(http.post(CHAT, json=BODIES[CHAT] | asked)) == set()
    assert (fake_model.asked[-1]["format"].kind, fake_model.asked[-1]["format"].value) == (kind, value)


def test_an_error_of_embeddings_names_their_field(http: httpx.Client) -> None:
    response = http.post("/v1/embeddings", json={"model": "echo", "input": "x" * 5000})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "input")
