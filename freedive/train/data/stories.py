"""Synthetic stories, and chats about them: endless, and equal for equal seeds."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

WORLD: dict[str, Any] = tomllib.loads((files("freedive.train.data") / "stories.toml").read_text("utf-8"))

PRONOUNS = {"girl": ("she", "her", "her"), "boy": ("he", "him", "his")}
WITH_NAME, WITHOUT_TITLE, WITH_QUESTION, CASUAL = 0.4, 0.2, 0.6, 0.4
"""The share of the requests that name the hero; of those that leave the title open; of the chats that continue with a
question after the story; of the user's messages without capitals or without a final punctuation mark."""


Message = dict[str, Any]
"""{"role": ..., "content": ...}, and "weight": 0 if the message is not to be learned."""

Record = dict[str, Any]
"""{"text": ...} or {"messages": [...]}; see :mod:`freedive.train.data.sources`."""


@dataclass(frozen=True)
class Story:
    """A story: ``title`` is its topic; ``questions`` are pairs of a question about it and the answer."""

    title: str
    text: str
    words: dict[str, str]
    questions: list[tuple[str, str]]


def story(source: random.Random) -> Story:
    """Makes a story from a random plot."""
    plot = source.choice(WORLD["plots"])
    words = _words(source)
    opening, ending = source.choice(WORLD["openings"]), source.choice(WORLD["endings"])
    lines = [opening, *map(source.choice, plot["lines"]), ending]
    text = " ".join(line.format_map(words) for line in lines)
    questions = [(asked.format_map(words), answer.format_map(words)) for asked, answer in plot["questions"]]
    return Story(plot["title"].format_map(words), text, words, questions)


def documents(count: int, seed: int) -> Iterator[Record]:
    """Yields ``count`` stories as records with a text."""
    source = random.Random(f"documents {seed}")
    for _ in range(count):
        yield {"text": story(source).text}


def chats(count: int, seed: int) -> Iterator[Record]:
    """Yields ``count`` chats as records with messages: a request, a story, and sometimes a question about it."""
    source = random.Random(f"chats {seed}")
    for _ in range(count):
        yield {"messages": telling(source)}


def telling(source: random.Random) -> list[Message]:
    """Makes a request for a story, the story, and sometimes a question about it with its answer."""
    made, kind = story(source), source.random()
    asks = "asks_with_name" if kind < WITH_NAME else "another" if kind < WITH_NAME + WITHOUT_TITLE else "asks"
    asked = source.choice(WORLD["chat"][asks]).format_map({**made.words, "title": made.title})
    messages = turn(casual(asked, source), made.text)
    if source.random() < WITH_QUESTION:
        messages += turn(*source.choice(made.questions))
    return messages


def talk(source: random.Random) -> list[Message]:
    """Makes a greeting, thanks, or a question about the model itself, with an answer."""
    words = _words(source)
    (about,) = source.choices(WORLD["talk"], [about.get("chance", 1) for about in WORLD["talk"]])
    asked, answer = (source.choice(about[side]).format_map(words) for side in ("asks", "answers"))
    return turn(casual(asked, source), answer)


def turn(asked: str, answer: str) -> list[Message]:
    """Returns a user's message and the answer to it."""
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def casual(text: str, source: random.Random) -> str:
    """Returns ``text``, sometimes in lower case or without its final punctuation mark, as people type."""
    if source.random() < CASUAL:
        text = text.lower()
    return text.rstrip(".!?") if source.random() < CASUAL else text


def _words(source: random.Random) -> dict[str, str]:
    """Draws the text for each placeholder in the sentences of the plots."""
    kind = source.choice(list(PRONOUNS))
    hero = source.choice(WORLD["girls" if kind == "girl" else "boys"])
    friend = source.choice([name for name in WORLD["girls"] + WORLD["boys"] if name != hero])
    they, them, their = PRONOUNS[kind]
    hides = source.sample(WORLD["hiding"], 2)
    return {
        "kind": kind,
        "a": hero,
        "b": friend,
        "they": they,
        "They": they.capitalize(),
        "them": them,
        "their": their,
        "Their": their.capitalize(),
        "g": source.choice(WORLD["grown_ups"]),
        "hide1": hides[0],
        "hide2": hides[1],
        "place": source.choice(WORLD["places"]),
        "color": source.choice(WORLD["colors"]),
        "toy": source.choice(WORLD["toys"]),
        "food": source.choice(WORLD["foods"]),
        "animal": source.choice(WORLD["animals"]),
        "pet": source.choice(WORLD["pets"]),
        "feeling": source.choice(WORLD["feelings"]),
        "weather": source.choice(WORLD["weather"]),
    }
