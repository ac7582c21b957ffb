"""Stories of a tiny world, and chats about them: endless, and the same for the same seed."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

WORLD: dict[str, Any] = tomllib.loads((files("freedive.train") / "stories.toml").read_text("utf-8"))

PRONOUNS = {"girl": ("she", "her", "her"), "boy": ("he", "him", "his")}
SMALL_TALK, WITH_QUESTION = 0.1, 0.6
"""Parts of the chats that are about nothing, and that go on with a question after the story."""


@dataclass(frozen=True)
class Story:
    """``title`` says what it is about; ``questions`` are pairs with their answers."""

    title: str
    text: str
    words: dict[str, str]
    questions: list[tuple[str, str]]


def story(source: random.Random) -> Story:
    """A story of one of the plots."""
    plot = source.choice(WORLD["plots"])
    words = _words(source)
    opening, ending = source.choice(WORLD["openings"]), source.choice(WORLD["endings"])
    lines = [opening, *map(source.choice, plot["lines"]), ending]
    text = " ".join(line.format_map(words) for line in lines)
    questions = [(asked.format_map(words), answer.format_map(words)) for asked, answer in plot["questions"]]
    return Story(plot["title"].format_map(words), text, words, questions)


def documents(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Stories as records with a text."""
    source = random.Random(f"documents {seed}")
    for _ in range(count):
        yield {"text": story(source).text}


def chats(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Chats as records with messages: a story that was asked for, perhaps a question about it, small talk."""
    source = random.Random(f"chats {seed}")
    for _ in range(count):
        yield {"messages": _chat(source)}


def _chat(source: random.Random) -> list[dict[str, str]]:
    talk = WORLD["chat"]
    if source.random() < SMALL_TALK:
        return _messages(*source.choice(talk["small_talk"]))
    told = story(source)
    named = source.random() < 0.5
    asked = source.choice(talk["asks_with_name" if named else "asks"]).format_map({**told.words, "title": told.title})
    messages = _messages(asked, told.text)
    if source.random() < WITH_QUESTION:
        messages += _messages(*source.choice(told.questions))
    return messages


def _messages(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _words(source: random.Random) -> dict[str, str]:
    """What stands for each name in the plots' sentences."""
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
