"""The model that comes with freedive: small, sparse, trained by freedive, able to do what it was trained for."""

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


def test_it_solves_tasks_that_it_has_never_seen(nano: freedive.LanguageModel) -> None:
    asked = list(islice(tasks(11, held_out=True), 40))
    right = [said(nano, task.question).strip() == task.answer for task in asked]
    assert sum(right) >= 32, [task.question for task, well in zip(asked, right, strict=True) if not well]


def test_it_thinks_before_it_answers(nano: freedive.LanguageModel) -> None:
    assert nano.can_think
    (task,) = islice(tasks(12, held_out=True), 1)
    events = list(nano.answer([{"role": "user", "content": task.question}], temperature=0))
    assert "".join(event.text for event in events if isinstance(event, freedive.Thought)) == task.steps


def test_its_thoughts_are_served_apart(nano: freedive.LanguageModel) -> None:
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


def test_it_says_who_it_is(nano: freedive.LanguageModel) -> None:
    assert "nano" in said(nano, "What is your name?")
