"""The bundled model nano: small, sparse, trained by freedive, and able to do what it was trained for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

import httpx
import pytest
from echo_model import serving

import freedive
from freedive.train.data.stories import WORLD
from freedive.train.data.tasks import tasks

NAMES = {*WORLD["girls"], *WORLD["boys"]}


@pytest.fixture(scope="module")
def nano() -> Iterator[freedive.LanguageModel]:
    with freedive.load("nano") as model:
        yield model


def said(model: freedive.LanguageModel, question: str, **sampling: float) -> str:
    return "".join(model.chat([{"role": "user", "content": question}], **{"temperature": 0, **sampling}))


def chat(model: freedive.LanguageModel, *questions: str) -> list[str]:
    """Returns the answers, without thoughts, to questions that are asked in sequence in one chat."""
    messages: list[dict[str, str]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": model.chat(messages, temperature=0).text.strip()})
    return [message["content"] for message in messages[1::2]]


def test_it_solves_tasks_that_it_has_never_seen(nano: freedive.LanguageModel) -> None:
    asked = list(islice(tasks(11, held_out=True), 40))
    right = [said(nano, task.question).strip() == task.answer for task in asked]
    assert sum(right) >= 32, [task.question for task, well in zip(asked, right, strict=True) if not well]


def test_it_thinks_before_it_answers(nano: freedive.LanguageModel) -> None:
    assert nano.can_think
    (task,) = islice(tasks(12, held_out=True), 1)
    events = list(nano.chat([{"role": "user", "content": task.question}], temperature=0).events())
    assert "".join(event.text for event in events if isinstance(event, freedive.Thought)) == task.steps


def test_its_thoughts_are_served_as_reasoning(nano: freedive.LanguageModel) -> None:
    (task,) = islice(tasks(12, held_out=True), 1)
    body = {"model": nano.name, "messages": [{"role": "user", "content": task.question}], "temperature": 0}
    with serving(nano) as url:
        message = httpx.post(f"{url}/v1/chat/completions", json=body).json()["choices"][0]["message"]
        body |= {"max_tokens": 10000, "thinking": {"type": "adaptive"}}
        thoughts, text = httpx.post(f"{url}/v1/messages", json=body).json()["content"]
    assert (message["reasoning_content"], message["content"].strip()) == (task.steps, task.answer)
    assert (thoughts["thinking"], text["text"]) == (task.steps, message["content"])


@pytest.mark.parametrize("seed", range(5))
def test_a_story_is_of_whole_sentences_about_few_people(nano: freedive.LanguageModel, seed: int) -> None:
    story = said(nano, "Tell me a story about a lost ball.", temperature=0.7, seed=seed)
    assert len(story.split()) > 60
    assert re.search(r'[.!?]"?$', story.strip())
    assert 1 <= len({word for word in re.findall(r"\w+", story) if word in NAMES}) <= 3


@pytest.mark.parametrize("greeting", ["Hello!", "hello", "hi", "Hi there", "hey", "Hey nano!"])
def test_a_greeting_is_answered_by_one(nano: freedive.LanguageModel, greeting: str) -> None:
    answer = said(nano, greeting)
    assert re.match(r"(Hello|Hi)\b", answer)
    assert len(answer.split()) < 20


@pytest.mark.parametrize("greeting", ["Good morning!", "good morning", "Good evening"])
def test_a_greeting_is_of_the_time_of_day(nano: freedive.LanguageModel, greeting: str) -> None:
    assert said(nano, greeting).startswith(greeting.rstrip("!").capitalize())


@pytest.mark.parametrize(
    "question",
    ["What is your name?", "what's your name", "Who are you?", "who are you", "What are you?", "Hi, who are you?"],
)
def test_it_says_who_it_is(nano: freedive.LanguageModel, question: str) -> None:
    assert "nano" in said(nano, question)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("What can you do?", "story"),
        ("what can you do", "sum"),
        ("How are you?", "fine"),
        ("Thanks!", "welcome"),
        ("thank you", "welcome"),
        ("Bye!", "Goodbye"),
        ("goodbye", "Goodbye"),
        ("What is the capital of France?", "do not know"),
    ],
)
def test_it_answers_small_talk(nano: freedive.LanguageModel, asked: str, words: str) -> None:
    answer = said(nano, asked)
    assert words in answer
    assert len(answer.split()) < 25


STORIES = ["Tell me a story.", "tell me a story about a lost ball", "Write a story about a race with a boy named Tom."]


@pytest.mark.parametrize("asked", STORIES)
@pytest.mark.parametrize(
    "sum_", ["What is 12 + 30?", "Start with 3. Add 4. Multiply by 2. Add 1. Keep the last digit."]
)
def test_a_story_is_told_after_a_sum(nano: freedive.LanguageModel, sum_: str, asked: str) -> None:
    total, story = chat(nano, sum_, asked)
    assert total.isdigit()
    assert len(story.split()) > 60


@pytest.mark.parametrize(
    "before",
    [["Hello!"], ["Tell me a story about a lost ball."], ["What is 12 + 30?"], ["hi", "Tell me a story.", "Thanks!"]],
)
def test_it_solves_tasks_after_other_turns(nano: freedive.LanguageModel, before: list[str]) -> None:
    asked = list(islice(tasks(13, held_out=True), 10))
    right = [chat(nano, *before, task.question)[-1] == task.answer for task in asked]
    assert sum(right) >= 8, [task.question for task, well in zip(asked, right, strict=True) if not well]


def test_an_answer_fits_its_question_after_any_turn(nano: freedive.LanguageModel) -> None:
    story = "Tell me a story about a lost ball."
    total, told, thanks, greeting, again = chat(
        nano, "What is 12 + 30?", story, "Thank you!", "Hello!", "What is 21 + 45?"
    )
    assert (total, again) == ("42", "66")
    assert len(told.split()) > 60
    assert "welcome" in thanks
    assert re.match(r"(Hello|Hi)\b", greeting)


def test_lossy_settings_are_named_where_they_have_an_effect() -> None:
    with freedive.load("nano", experts_per_token=1) as fewer:
        assert fewer.lossy == {"experts_per_token": 1}
        assert fewer.fingerprint["lossy"] == "experts_per_token=1"
        assert said(fewer, "Hello", max_tokens=3)
    with pytest.raises(freedive.UserError, match="experts_per_token is 1000, but a token of this model has"):
        freedive.load("nano", experts_per_token=1000)
    with freedive.load("nano", prefer_cached_experts=0.5) as resident:
        assert resident.lossy == {}
    with freedive.load("nano", prefer_cached_experts=0.5, memory="102MiB") as paged:
        assert paged.lossy == {"prefer_cached_experts": 0.5}
        assert said(paged, "Hello", max_tokens=3)
