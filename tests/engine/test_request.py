"""Requests as JSON: a round trip gives an equal request; other JSON is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freedive.engine.request import GenerationRequest, embedding_request
from freedive.engine.sampling import RANGES, Sampling, SamplingFields
from freedive.engine.submission import Scope
from freedive.errors import UserError
from freedive.text.format import Format
from freedive.text.prompt import Prompt
from freedive.text.request import ChatInput, TextInput
from freedive.text.thinking import EFFORTS
from freedive.text.tools import Function

TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
CHAT = ChatInput(({"role": "user", "content": "Hi"},), (TOOL,), Function("now"), False, Format("choice", ["a", "b"]))
REQUEST = GenerationRequest("nano", (CHAT, TextInput("x"), TextInput((1, 2))), {"temperature": 0.5}, n=2)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(texts, values, max_size=3)
formats = st.none() | st.builds(Format, st.just("json_schema"), objects) | st.just(Format("json_object"))
chats = st.builds(
    ChatInput,
    st.lists(objects, max_size=3).map(tuple),
    st.lists(objects, max_size=2).map(tuple),
    st.sampled_from(["auto", "none", "required"]) | st.builds(Function, texts),
    st.booleans(),
    formats,
    st.none() | st.booleans(),
    st.none() | st.sampled_from(sorted(EFFORTS)),
    st.none() | st.integers(0, 99),
    st.booleans(),
    st.just({}) | st.dictionaries(st.sampled_from(["a", "b"]), values),
    st.lists(objects, max_size=1).map(tuple),
    st.booleans(),
)
plain = st.builds(TextInput, texts | st.lists(st.integers(0, 99)).map(tuple), st.just(""), st.booleans(), formats)
samplings = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.none() | st.integers(0, 99),
        "temperature": st.floats(0, 9),
        "logit_bias": st.dictionaries(st.integers(0, 9), st.floats(-100, 100), max_size=3),
        "stop": st.lists(texts, max_size=3).map(tuple),
        "stop_token_ids": st.frozensets(st.integers(0, 9), max_size=3),
        "seed": st.none() | st.integers(-(2**63), 2**63 - 1),
        "ignore_eos": st.booleans(),
    },
)
requests = st.builds(
    GenerationRequest,
    texts,
    st.lists(chats | plain, max_size=3).map(tuple),
    samplings,
    st.integers(1, 9),
    st.builds(Scope, texts, texts, texts),
    st.sampled_from([None, "mean", "last"]),
    st.none() | st.integers(1, 9),
    st.none() | st.floats(0, 9),
)


@given(requests)
def test_a_request_is_the_same_after_a_round_trip(request_: GenerationRequest) -> None:
    again = GenerationRequest.from_json(request_.to_json())
    assert again == request_
    assert again.to_json() == request_.to_json()
    assert {name: type(value) for name, value in again.sampling.items()} == {
        name: type(value) for name, value in request_.sampling.items()
    }


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((), "surprise"),
        (("scope",), "surprise"),
        (("inputs", 0), "surprise"),
        (("inputs", 0, "tool_choice"), "surprise"),
        (("inputs", 0, "format"), "surprise"),
        (("inputs", 1), "surprise"),
        (("sampling",), "There is no sampling field 'surprise'"),
    ],
    ids=str,
)
def test_unknown_names_are_refused(place: tuple[Any, ...], words: str) -> None:
    data = json.loads(REQUEST.to_json())
    node = data
    for step in place:
        node = node[step]
    node["surprise"] = 1
    with pytest.raises(UserError, match=words):
        GenerationRequest.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": 1, "inputs": []}', '{"model": "a", "inputs": [{}]}'])
def test_what_is_no_request_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="This is not a request"):
        GenerationRequest.from_json(text)


@pytest.mark.parametrize("wrong", [{"temperature": "hot"}, {"max_tokens": 1.5}, {"stop": 3}], ids=str)
def test_sampling_of_other_types_is_refused(wrong: dict[str, Any]) -> None:
    data = json.loads(REQUEST.to_json()) | {"sampling": wrong}
    with pytest.raises(UserError, match="This is not a request"):
        GenerationRequest.from_json(json.dumps(data))


def test_numbers_that_json_lacks_come_back() -> None:
    numbers = {"a": float("inf"), "b": [float("-inf"), float("nan")]}
    request = replace(REQUEST, inputs=(ChatInput(({"role": "user", "content": numbers},)),))
    assert repr(GenerationRequest.from_json(request.to_json())) == repr(request)


@pytest.mark.parametrize("n", [0, -1])
def test_a_request_for_less_than_one_answer_is_refused(n: int) -> None:
    with pytest.raises(UserError, match=f"n is {n}"):
        replace(REQUEST, n=n)


def test_what_has_no_json_is_refused() -> None:
    odd = replace(REQUEST, inputs=(ChatInput(({"role": "user", "content": object()},)),))
    with pytest.raises(UserError, match="cannot be written as JSON"):
        odd.to_json()


def test_choices_are_jobs_with_seeds_of_their_own() -> None:
    request = replace(REQUEST, n=3, max_context=10, scope=Scope("ann"))
    jobs = request.jobs([Prompt([1] * 4), Prompt([2] * 6)], Sampling(seed=7), 100)
    assert [(len(job.prompt.tokens), job.sampling.seed, job.sampling.max_tokens) for job in jobs] == [
        *((4, seed, 6) for seed in (7, 8, 9)),
        *((6, seed, 4) for seed in (7, 8, 9)),
    ]
    assert {job.scope.tenant for job in jobs} == {"ann"}
    with pytest.raises(UserError, match="max_context is 10"):
        request.jobs([Prompt([1] * 10)], Sampling(), 100)


def test_embeddings_are_requests_for_pooling() -> None:
    request = embedding_request("nano", ["a", [1, 2]], "last")
    assert request.inputs == (TextInput("a"), TextInput((1, 2)))
    assert request.pooling == "last"
    assert not request.is_guided


def test_keywords_are_the_fields_of_sampling() -> None:
    assert get_type_hints(SamplingFields) == get_type_hints(Sampling)
    assert RANGES.keys() <= get_type_hints(SamplingFields).keys()
