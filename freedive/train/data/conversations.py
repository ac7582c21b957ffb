"""Conversations of several turns: talk, stories and tasks in any order, so that each is answered as what it is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from freedive.train.data import stories, tasks
from freedive.train.data.stories import Message, Record
from freedive.train.data.tasks import Task

TALK, STORY, TASK = "talk", "story", "task"
CHANCES = {TALK: 5, STORY: 2, TASK: 5}
"""How often each kind of turn comes up."""

MOST_STORIES, MOST_TURNS = 2, 5
"""In one conversation, so that it fits the contexts of small presets."""

AFTER_OTHERS = 0.4
"""Part of the tasks of reinforcement that come after other turns."""


def chats(count: int, seed: int) -> Iterator[Record]:
    """Conversations as records with messages. A task that is answered before the last turn stands there without its
    thoughts, as it does for a served model, and is not learned; one in the last turn is thought through."""
    source = random.Random(f"conversations {seed}")
    new = tasks.tasks(seed + 2, held_out=False)
    for _ in range(count):
        *before, last = _kinds(source)
        messages = [message for kind in before for message in _turn(kind, source, new)]
        yield {"messages": messages + (tasks.solved(next(new)) if last == TASK else _turn(last, source, new))}


def reinforced(seed: int) -> Iterator[Task]:
    """Endless tasks to be reinforced, some of them after other turns."""
    source = random.Random(f"reinforced {seed}")
    others = tasks.tasks(seed + 3, held_out=False)
    for task in tasks.tasks(seed, held_out=False):
        kinds = _kinds(source)[1:] if source.random() < AFTER_OTHERS else []
        yield replace(task, before=tuple(message for kind in kinds for message in _turn(kind, source, others)))


def _kinds(source: random.Random) -> list[str]:
    """The kinds of a conversation's turns."""
    kinds = source.choices(list(CHANCES), list(CHANCES.values()), k=source.randint(1, MOST_TURNS))
    told = [index for index, kind in enumerate(kinds) if kind == STORY]
    return [kind for index, kind in enumerate(kinds) if index not in told[MOST_STORIES:]]


def _turn(kind: str, source: random.Random, new: Iterator[Task]) -> list[Message]:
    if kind == TALK:
        return stories.talk(source)
    if kind == STORY:
        return stories.telling(source)
    return tasks.earlier(next(new))
