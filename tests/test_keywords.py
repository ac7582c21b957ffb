"""The Python API checks its keyword arguments before it computes anything: an error names the argument and its type."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, get_type_hints

import numpy as np
import pytest

import freedive
from freedive import ChatInput, TextInput, UserError
from freedive.config import EngineConfig, EngineSettings
from freedive.engine.sampling import Sampling, SamplingFields

ASK = [{"role": "user", "content": "Hi"}]
TEXTS = {"cache_format", "precision", "speculation"}


@pytest.fixture(scope="module")
def model() -> Iterator[freedive.LanguageModel]:
    with freedive.load("nano", cache_tokens=1024) as model:
        yield model


def test_keywords_of_load_are_the_fields_of_its_settings() -> None:
    assert get_type_hints(EngineSettings) == get_type_hints(EngineConfig)


@pytest.mark.parametrize("value", [..., b"x", [[]], {"a": None}, 2j], ids=repr)
@pytest.mark.parametrize(
    "name",
    [
        *get_type_hints(SamplingFields),
        *("tools", "tool_choice", "parallel_tool_calls", "format", "thinking", "effort", "thinking_budget"),
        *("continue_final_message", "template_kwargs", "scope", "messages"),
    ],
)
def test_a_wrong_value_is_refused_by_name(model: freedive.LanguageModel, name: str, value: Any) -> None:
    if (name, type(value)) == ("template_kwargs", dict):
        return
    num_requests = model.engine.stats().num_requests
    with pytest.raises(UserError, match=name):
        model.chat(**{"messages": ASK} | {name: value})
    assert model.engine.stats().num_requests == num_requests


@pytest.mark.parametrize("value", ["x", None, [], ..., float("nan")], ids=repr)
@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p", "ignore_eos", "presence_penalty"])
def test_none_and_text_are_no_numbers(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{name} is ") as refused:
        Sampling(**{name: value})
    assert refused.value.param == name


@pytest.mark.parametrize("value", ["x", [], ..., float("nan"), -1, b"on"], ids=repr)
@pytest.mark.parametrize("name", get_type_hints(EngineSettings))
def test_a_wrong_setting_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{name} is "):
        EngineConfig(**{name: value})


@pytest.mark.parametrize("name", ["max_batch", "prefill_chunk", "disk_cache_gb", "watchdog", "prefix_cache"])
def test_a_setting_without_a_choice_of_its_own_is_not_none(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is None"):
        EngineConfig(**{name: None})


def test_a_disk_without_end_is_refused() -> None:
    with pytest.raises(UserError, match="disk_cache_gb is inf"):
        EngineConfig(disk_cache_gb=float("inf"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ChatInput(None), r"messages is None. Give it a value of the type Sequence\[Mapping\[str, Any\]\]"),
        (lambda: TextInput("", format=1), r"format is 1. Give it a value of the type Format \| None"),
        (lambda: Sampling(top_k=""), r"top_k is ''. Give it a value of the type int"),
        (lambda: Sampling(stop=1), r"stop is 1. Give it a value of the type tuple\[str, \.\.\.\]"),
    ],
)
def test_a_refusal_tells_the_type(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def test_one_stop_string_is_not_taken_for_letters() -> None:
    with pytest.raises(UserError, match="stop is 'end'"):
        Sampling(stop="end")


@pytest.mark.parametrize(("call", "name"), [("generate", "prompts"), ("embed", "texts")])
@pytest.mark.parametrize("value", ["Hello", None, 5], ids=repr)
def test_one_text_is_no_batch(model: freedive.LanguageModel, call: str, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{name} is "):
        getattr(model, call)(value)


@pytest.mark.parametrize("text", [None, 5, b"x", [1.5], ["a"], {1: 2}], ids=repr)
def test_what_is_no_text_is_refused(model: freedive.LanguageModel, text: Any) -> None:
    with pytest.raises(UserError, match="text is "):
        model.complete(text)
    with pytest.raises(UserError, match="text is "):
        model.embed([text])


def test_values_of_related_types_are_taken() -> None:
    sampling = Sampling(temperature=np.float32(0.5), top_k=np.int64(3), stop=["a", ""], stop_token_ids=[1, 1])
    assert (sampling.stop, sampling.stop_token_ids) == (("a",), frozenset({1}))
    assert TextInput(np.arange(3)).text == (0, 1, 2)
    assert ChatInput(ASK, template_kwargs=MappingProxyType({"a": 1})) == ChatInput(tuple(ASK), template_kwargs={"a": 1})
