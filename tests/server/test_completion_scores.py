"""Log-probabilities of a real model over HTTP, token by token, of the answer and of the echoed prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from echo_model import serving

import freedive

FACES = "😀😃😄😁😆😅"
STORY = "The lighthouse keeper had not spoken to anyone for eleven days when the small boat came round the point"


@pytest.fixture(scope="module")
def model() -> Iterator[freedive.LanguageModel]:
    with freedive.load("smollm2", max_context=400) as model:
        yield model


@pytest.fixture(scope="module")
def client(model: freedive.LanguageModel) -> Iterator[openai.OpenAI]:
    with serving(model) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client: openai.OpenAI, **fields: Any) -> list[Any]:
    return client.completions.create(model="smollm2", temperature=0, **fields).choices


def test_tokens_that_are_parts_of_characters_have_entries_of_their_own(
    client: openai.OpenAI, model: freedive.LanguageModel
) -> None:
    (choice,) = complete(client, prompt=FACES, max_tokens=6, logprobs=5)
    found = choice.logprobs
    assert sum(name.startswith("bytes:\\x") for name in found.tokens) > 2
    for name, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert len(top) == 5
        assert top[name] == logprob == max(top.values())
    (chat,) = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": f"Repeat {FACES}"}],
        temperature=0,
        max_tokens=24,
        logprobs=True,
        top_logprobs=3,
    ).choices
    written = b"".join(bytes(entry.bytes) for entry in chat.logprobs.content)
    assert written.decode(errors="ignore").startswith(chat.message.content)
    assert all(len({top.token for top in entry.top_logprobs}) == 3 for entry in chat.logprobs.content)


def test_places_of_tokens_are_those_in_the_text(client: openai.OpenAI, model: freedive.LanguageModel) -> None:
    (choice,) = complete(client, prompt=f"{STORY} {FACES} é", max_tokens=8, logprobs=1, echo=True)
    found = choice.logprobs
    assert found.text_offset == sorted(found.text_offset)
    assert found.text_offset[0] == 0
    for name, place in zip(found.tokens, found.text_offset, strict=True):
        assert name.startswith("bytes:") or choice.text[place:].startswith(name) or place == len(choice.text)
    streamed = client.completions.create(
        model="smollm2", prompt=f"{STORY} {FACES} é", temperature=0, max_tokens=8, logprobs=1, echo=True, stream=True
    )
    parts = [chunk.choices[0] for chunk in streamed if chunk.choices]
    assert "".join(part.text for part in parts) == choice.text
    assert [name for part in parts if part.logprobs for name in part.logprobs.tokens] == found.tokens
    assert [place for part in parts if part.logprobs for place in part.logprobs.text_offset] == found.text_offset


def test_echoed_prompts_are_scored_as_the_model_writes_them(
    client: openai.OpenAI, model: freedive.LanguageModel
) -> None:
    (written,) = complete(client, prompt=STORY, max_tokens=24, logprobs=3)
    prompt = model.tokenizer.encode(STORY, add_special=True)
    whole = [*prompt, *model.tokenizer.encode(written.text, parse_special=False)]
    scored, second = complete(client, prompt=[whole, prompt], max_tokens=1, logprobs=3, echo=True)
    assert scored.text.startswith(STORY + written.text)
    assert (scored.logprobs.token_logprobs[0], scored.logprobs.top_logprobs[0]) == (None, None)
    assert len(scored.logprobs.tokens) == len(whole) + 1
    assert scored.logprobs.tokens[len(prompt) : -1] == written.logprobs.tokens
    assert scored.logprobs.token_logprobs[len(prompt) : -1] == pytest.approx(written.logprobs.token_logprobs, abs=0.3)
    assert second.logprobs.token_logprobs[1:-1] == pytest.approx(
        scored.logprobs.token_logprobs[1 : len(prompt)], abs=0.3
    )
    (again,) = complete(client, prompt=STORY, max_tokens=0, logprobs=3, echo=True)
    assert (again.text, again.finish_reason) == (STORY, "length")
    assert again.logprobs.token_logprobs == second.logprobs.token_logprobs[:-1]


def test_a_token_has_as_many_alternatives_as_in_a_chat(client: openai.OpenAI) -> None:
    (scored,) = complete(client, prompt=STORY, max_tokens=2, logprobs=20, echo=True)
    first, *others = scored.logprobs.top_logprobs
    assert first is None
    assert {len(found) >= 20 for found in others} == {True}


def test_limits_that_ask_for_nothing_or_too_much_are_honoured(client: openai.OpenAI) -> None:
    (nothing,) = complete(client, prompt=STORY, max_tokens=0)
    assert (nothing.text, nothing.finish_reason) == ("", "length")
    for limit in (10**9, -1):
        fields = {"top_k": -1, "stop": ["", "zzz"], "ignore_eos": True}
        (cut,) = complete(client, prompt=[300] * 380, max_tokens=limit, logprobs=0, extra_body=fields)
        assert (len(cut.logprobs.tokens), cut.finish_reason) == (20, "length")
    (free,) = complete(client, prompt=STORY, max_tokens=2, stop="")
    assert free.finish_reason == "length"


def test_the_reason_of_an_endless_repetition_is_reported(client: openai.OpenAI) -> None:
    looping = {"repetition_detection": True, "logit_bias": {"300": 100}}
    (choice,) = complete(client, prompt="la la la", max_tokens=-1, extra_body=looping)
    assert (choice.finish_reason, choice.stop_reason) == ("length", "repetition")
    (stopped,) = complete(client, prompt="la la la la la la la", max_tokens=50, stop=["never", " "])
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", " ")
