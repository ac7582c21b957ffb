"""Replies in Python: streamed text, and all facts about a reply at its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import freedive
from freedive import ChatInput, Format, TextInput, Usage, UserError
from freedive.engine.generation import EngineError, TokenOutput

ASK = [{"role": "user", "content": "What is 17 + 25 - 3?"}]
LONG: dict[str, Any] = {"ignore_eos": True, "max_tokens": 600}


@pytest.fixture(scope="module")
def model() -> Iterator[freedive.LanguageModel]:
    with freedive.load("nano", cache_tokens=4096) as model:
        yield model


def test_streamed_parts_join_to_the_text_each_time_they_are_read(model: freedive.LanguageModel) -> None:
    reply = model.chat(ASK, temperature=0)
    pieces = list(reply)
    assert len(pieces) > 1
    assert "".join(pieces) == reply.text == "".join(reply) == model.chat(ASK, temperature=0).text


def test_a_reply_has_all_its_facts(model: freedive.LanguageModel) -> None:
    reply = model.chat(ASK, temperature=0, logprobs=1, thinking=True)
    assert reply.thoughts
    assert reply.finish_reason == "stop"
    assert reply.tool_calls == ()
    assert len(reply.logprobs) == len(reply.token_ids) == reply.usage.completion_tokens
    assert 0 < reply.usage.thought_tokens < reply.usage.completion_tokens
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert next(type(event).__name__ for event in reply.events()) == "Thought"
    assert "".join(event.text for event in reply.events() if isinstance(event, freedive.Text)) == reply.text
    assert reply.timings.num_generated == len(reply.token_ids)


def test_a_seed_makes_the_same_reply(model: freedive.LanguageModel) -> None:
    reply = model.chat(ASK, temperature=1.5, max_tokens=30)
    assert model.chat(ASK, temperature=1.5, max_tokens=30, seed=reply.seed).token_ids == reply.token_ids


def test_reading_whole_in_the_middle_of_an_iteration_loses_nothing(model: freedive.LanguageModel) -> None:
    reply = model.chat(ASK, temperature=0)
    seen = ""
    for piece in reply:
        seen += piece
        assert reply.text.startswith(seen)
    assert seen == reply.text


def test_generation_starts_without_a_reader(model: freedive.LanguageModel) -> None:
    reply = model.chat(ASK, temperature=0, max_tokens=5)
    deadline = time.monotonic() + 60
    while reply.timings.finished_at is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert reply.usage.completion_tokens == 5


def test_cancelling_ends_a_reply(model: freedive.LanguageModel) -> None:
    reply = model.complete("One", **LONG)
    pieces = iter(reply)
    first = next(pieces)
    reply.cancel()
    assert reply.finish_reason == "cancelled"
    assert reply.text.startswith(first)
    assert reply.usage.completion_tokens < 600


def test_leaving_an_iteration_cancels_the_rest(model: freedive.LanguageModel) -> None:
    reply = model.complete("One", **LONG)
    for _ in reply:
        break
    assert reply.finish_reason == "cancelled"


def test_a_batch_is_answered_as_its_parts_are(model: freedive.LanguageModel) -> None:
    prompts = ["Once upon", ASK, ChatInput(ASK, thinking=False), TextInput("Once upon")]
    replies = model.generate(prompts, temperature=0, max_tokens=12)
    alone = [
        model.complete("Once upon", temperature=0, max_tokens=12),
        model.chat(ASK, temperature=0, max_tokens=12),
        model.chat(ASK, temperature=0, max_tokens=12, thinking=False),
        model.complete("Once upon", temperature=0, max_tokens=12),
    ]
    assert [reply.token_ids for reply in replies] == [reply.token_ids for reply in alone]
    assert model.generate([]) == []
    with pytest.raises(UserError, match="There are no texts"):
        model.embed([])


def test_a_batch_has_one_format(model: freedive.LanguageModel) -> None:
    replies = model.generate(["Yes or no?", ASK], format=Format("choice", ["yes", "no"]), temperature=0)
    assert all(reply.text in ("yes", "no") for reply in replies)


def test_what_cannot_be_asked_is_refused_at_once(model: freedive.LanguageModel) -> None:
    with pytest.raises(UserError, match="temperature is -1"):
        model.chat(ASK, temperature=-1)
    with pytest.raises(UserError, match="effort is 'huge'"):
        model.chat(ASK, effort="huge")
    with pytest.raises(TypeError, match="tempo"):
        model.chat(ASK, tempo=1)  # type: ignore[call-arg]


# --- in an event loop -------------------------------------------------------------------------------------------------


def test_replies_are_read_concurrently_in_an_event_loop(model: freedive.LanguageModel) -> None:
    async def pieces(reply: freedive.Reply) -> list[str]:
        return [piece async for piece in reply]

    async def read() -> tuple[Any, ...]:
        ask = {"temperature": 0, "max_tokens": 20}
        return await asyncio.gather(
            model.chat(ASK, **ask).read(), pieces(model.chat(ASK, **ask)), model.complete("Once", **ask).read()
        )

    whole, parts, text = asyncio.run(read())
    assert whole.text == "".join(parts) == model.chat(ASK, temperature=0, max_tokens=20).text
    assert text.text == model.complete("Once", temperature=0, max_tokens=20).text


def test_a_cancelled_reader_cancels_its_reply(model: freedive.LanguageModel) -> None:
    async def leave(reply: freedive.Reply) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reply.read(), 0.05)

    reply = model.complete("One", ignore_eos=True, max_tokens=3900)
    asyncio.run(leave(reply))
    assert reply.finish_reason == "cancelled"


def test_several_threads_read_the_same(model: freedive.LanguageModel) -> None:
    reply = model.complete("One", **LONG)
    with ThreadPoolExecutor(8) as threads:
        texts = [threads.submit("".join, reply) for _ in range(8)]
        assert {text.result(60) for text in texts} == {reply.text}


def test_several_tasks_read_the_same(model: freedive.LanguageModel) -> None:
    async def read(reply: freedive.Reply) -> set[str]:
        wholes = await asyncio.wait_for(asyncio.gather(*(reply.read() for _ in range(8))), 60)
        return {whole.text for whole in wholes}

    reply = model.complete("One", **LONG)
    assert asyncio.run(read(reply)) == {reply.text}


def test_a_reply_outlives_the_loop_that_read_it_first(model: freedive.LanguageModel) -> None:
    async def begin(reply: freedive.Reply) -> None:
        pieces.append(aiter(reply))
        await anext(pieces[-1])

    async def end(reply: freedive.Reply) -> str:
        return (await asyncio.wait_for(reply.read(), 60)).finish_reason

    pieces: list[AsyncIterator[str]] = []
    reply = model.complete("One", **LONG)
    asyncio.run(begin(reply))
    assert asyncio.run(end(reply)) == "cancelled"


# --- faults -----------------------------------------------------------------------------------------------------------


class Failing:
    """A generation that outputs one text and then fails."""

    num_prompt_tokens, num_cached_tokens, seed = 3, 1, 7

    def __iter__(self) -> Iterator[TokenOutput]:
        yield TokenOutput((freedive.Text("a"),), (1,))
        raise EngineError("out of tea")

    def cancel(self) -> None:
        pass


def test_a_fault_is_raised_by_whatever_reads_to_the_end() -> None:
    reply = freedive.Reply(Failing())
    pieces = iter(reply)
    assert next(pieces) == "a"
    for read in (lambda: next(pieces), lambda: reply.text, lambda: reply.usage, lambda: list(reply)):
        with pytest.raises(EngineError, match="out of tea"):
            read()


def test_usage_adds_up() -> None:
    assert Usage(3, 2, 4, 1).total_tokens == 7
