"""The Python API with the real default model: it answers, and the same request has the same answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import freedive
from freedive.engine.generation import Generation
from freedive.errors import NotFound, Unavailable, UserError
from freedive.text.request import ChatInput

CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
STORY = (
    "The lighthouse keeper had not spoken to anyone for eleven days when the small boat came round the point, low in "
    "the water and without a light. He put down his cup, took the lamp from its hook and went to the"
)
COMPANIONS = [f"{number} little boats went out to sea, and " + "rowed and " * number for number in range(5)]
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 0.9, "top_p": 0.95, "seed": 7},
    "penalised": {"temperature": 0.7, "top_k": 40, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "seed": 1},
}


@pytest.fixture(scope="module")
def model() -> Iterator[freedive.LanguageModel]:
    with freedive.load("smollm2", cache_tokens=4096) as model:
        yield model


def test_three_lines_answer() -> None:
    model = freedive.load("smollm2")
    answer = "".join(model.chat(CAPITAL, temperature=0))
    model.close()
    assert "Paris" in answer


def test_an_answer_is_streamed(model: freedive.LanguageModel) -> None:
    pieces = list(model.chat([{"role": "user", "content": "Count from one to ten."}], temperature=0, max_tokens=20))
    assert len(pieces) > 10
    assert all(pieces)


def test_a_text_is_continued_without_a_template(model: freedive.LanguageModel) -> None:
    text = "".join(model.complete("The capital of France is", temperature=0, max_tokens=3))
    assert text.startswith(" ")
    assert "Paris" in text


def test_a_conversation_is_remembered(model: freedive.LanguageModel) -> None:
    messages = [
        {"role": "user", "content": "My name is Ada. Remember it."},
        {"role": "assistant", "content": "Nice to meet you, Ada."},
        {"role": "user", "content": "What is my name?"},
    ]
    assert "Ada" in "".join(model.chat(messages, temperature=0, max_tokens=20))


def test_a_stop_string_ends_the_answer(model: freedive.LanguageModel) -> None:
    text = "".join(model.complete("1, 2, 3, 4,", temperature=0, max_tokens=30, stop=("8,",)))
    assert text == " 5, 6, 7, "


def test_a_model_without_thoughts_cannot_be_ordered_to_think(model: freedive.LanguageModel) -> None:
    assert not model.can_think
    with pytest.raises(UserError, match="does not think"):
        model.chat([{"role": "user", "content": "hello"}], thinking=True)


# --- same request, same answer ------------------------------------------------------------------------------------


def read(generation: Generation) -> tuple[str, list[int]]:
    outputs = list(generation)
    return "".join(output.text for output in outputs), [token for output in outputs for token in output.token_ids]


def submit(model: freedive.LanguageModel, prompt: str, **sampling: Any) -> Generation:
    tokens = model.tokenizer.encode(prompt, add_special=True)
    return model.engine.submit(tokens, model.sampling(max_tokens=28, ignore_eos=True, **sampling))


@cache
def alone(request: str) -> tuple[str, list[int]]:
    """Returns text and tokens of the request alone, in one chunk, on one thread."""
    with freedive.load("smollm2", threads=1, cache_tokens=128, prefix_cache="off") as model:
        return read(submit(model, STORY, **REQUESTS[request]))


@pytest.mark.parametrize(
    "settings",
    [{"prefill_chunk": 512}, {"prefill_chunk": 16, "threads": 2}, {"prefill_chunk": 7, "max_batch": 3}],
    ids=str,
)
def test_an_answer_does_not_depend_on_batch_chunks_or_threads(settings: dict[str, Any]) -> None:
    alike = {"threads": 1, "cache_tokens": 2048, "prefix_cache": "off"}
    with freedive.load("smollm2", **{**alike, **settings}) as model:
        companions = [submit(model, text, temperature=1.0, seed=3) for text in COMPANIONS]
        generations = {request: submit(model, STORY, **sampling) for request, sampling in REQUESTS.items()}
        for request, generation in generations.items():
            assert read(generation) == alone(request), request
        assert all(read(companion) for companion in companions)


def test_an_answer_does_not_depend_on_preemption() -> None:
    with freedive.load("smollm2", threads=2, cache_tokens=160, prefix_cache="off") as model:
        generations = {request: submit(model, STORY, **sampling) for request, sampling in REQUESTS.items()}
        for request, generation in generations.items():
            assert read(generation) == alone(request), request
        assert sum(generation.timings.num_preemptions for generation in generations.values()) > 0


def test_a_later_request_repeats_an_earlier_one(model: freedive.LanguageModel) -> None:
    for request, sampling in REQUESTS.items():
        assert read(submit(model, STORY, **sampling)) == alone(request)


def test_seeds_differ(model: freedive.LanguageModel) -> None:
    generations = [submit(model, STORY, temperature=0.9, seed=seed) for seed in range(4)]
    assert len({read(generation)[0] for generation in generations}) == 4


# --- cancelling ---------------------------------------------------------------------------------------------------


def wait_for_all_pages(model: freedive.LanguageModel) -> None:
    deadline = time.monotonic() + 60
    while model.engine.stats().free_pages != model.engine.stats().num_pages:
        assert time.monotonic() < deadline, "pages were not freed"
        time.sleep(0.001)


def test_cancelling_frees_the_pages(model: freedive.LanguageModel) -> None:
    wait_for_all_pages(model)
    generation = model.engine.submit(
        model.prepare(ChatInput(CAPITAL)), model.sampling(ignore_eos=True, max_tokens=2000)
    )
    outputs = iter(generation)
    for _ in range(3):
        next(outputs)
    stats = model.engine.stats()
    assert (stats.running, stats.free_pages < stats.num_pages) == (1, True)
    generation.cancel()
    *_, last = outputs
    assert last.finish_reason == "cancelled"
    assert model.engine.stats().free_pages == stats.num_pages
    assert model.engine.stats().running == 0


def test_leaving_the_loop_cancels(model: freedive.LanguageModel) -> None:
    for _ in model.chat(CAPITAL, ignore_eos=True, max_tokens=2000):
        break
    wait_for_all_pages(model)


# --- refusals -----------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_refused_with_a_hint() -> None:
    with pytest.raises(NotFound, match=r"smolm2.*smollm2"):
        freedive.load("smolm2")


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.3, 0.999])
def test_a_truncated_file_is_refused(part: float, smollm2_path: Path, tmp_path: Path) -> None:
    data = smollm2_path.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(UserError, match=r"cut\.gguf"):
        freedive.load(str(path))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_context": 8193}, "max_context is 8193, but the model reads at most 8192"),
        ({"max_context": 1}, "max_context is 1. Choose a value at least 2"),
        ({"threads": 0}, "threads is 0. Choose a value from 1 to 1024"),
        ({"cache_tokens": 31}, "cache_tokens is 31. Choose a value at least 32"),
        ({"max_batch": 0}, "max_batch is 0. Choose a value from 1 to 4096"),
        ({"prefill_chunk": 1}, "prefill_chunk is 1. Choose a value from 2 to 65536"),
        ({"cache_tokens": 10**10}, "does not fit"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        freedive.load("smollm2", **settings)


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"max_tokens": -2}, "max_tokens is -2"),
        ({"logit_bias": {49152: 1}}, "logit_bias has token 49152"),
    ],
    ids=str,
)
def test_impossible_requests_are_refused(model: freedive.LanguageModel, sampling: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        model.chat(CAPITAL, **sampling)


def test_a_prompt_beyond_the_context_is_refused(model: freedive.LanguageModel) -> None:
    words = r"The prompt has \d+ tokens, but this model's maximum context length is 4096.*raise cache_tokens"
    with pytest.raises(UserError, match=words):
        model.complete("word " * 5000)
    with pytest.raises(UserError, match="The prompt is empty"):
        model.complete("")


def test_a_closed_model_says_so() -> None:
    model = freedive.load("smollm2", cache_tokens=64)
    model.close()
    model.close()
    with pytest.raises(Unavailable, match="closed"):
        model.chat(CAPITAL)
