"""Conversations of several turns: small talk, stories and tasks in random order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from freedive.train.data import stories, tasks
from freedive.train.data.stories import Message, Record
from freedive.train.data.tasks import Task

TALK, STORY, TASK = "talk", "story", "task"
CHANCES = {TALK: 5, STORY: 2, TASK: 5}
"""Relative frequency of each kind of turn."""

MOST_STORIES, MOST_TURNS = 2, 5
"""The most stories and the most turns of one conversation, which has to fit into the context of small presets."""

AFTER_OTHERS = 0.4
"""Share of the reinforcement tasks that come after other turns."""


def chats(count: int, seed: int) -> Iterator[Record]:
    """Yields ``count`` conversations as records with messages.

    A task before the last turn has its answer without thoughts, as a served model would see it, and has loss weight 0.
    A task in the last turn has its thoughts and is learned.
    """
    source = random.Random(f"conversations {seed}")
    new = tasks.tasks(seed + 2, held_out=False)
    for _ in range(count):
        *before, last = _kinds(source)
        messages = [message for kind in before for message in _turn(kind, source, new)]
        yield {"messages": messages + (tasks.solved(next(new)) if last == TASK else _turn(last, source, new))}


def reinforced(seed: int) -> Iterator[Task]:
    """Yields tasks for reinforcement without end; some come after other turns."""
    source = random.Random(f"reinforced {seed}")
    others = tasks.tasks(seed + 3, held_out=False)
    for task in tasks.tasks(seed, held_out=False):
        kinds = _kinds(source)[1:] if source.random() < AFTER_OTHERS else []
        yield replace(task, before=tuple(message for kind in kinds for message in _turn(kind, source, others)))


def _kinds(source: random.Random) -> list[str]:
    """Draws the kinds of the turns of one conversation."""
    kinds = source.choices(list(CHANCES), list(CHANCES.values()), k=source.randint(1, MOST_TURNS))
    story_indices = [index for index, kind in enumerate(kinds) if kind == STORY]
    return [kind for index, kind in enumerate(kinds) if index not in story_indices[MOST_STORIES:]]


def _turn(kind: str, source: random.Random, new: Iterator[Task]) -> list[Message]:
    if kind == TALK:
        return stories.talk(source)
    if kind == STORY:
        return stories.telling(source)
    return tasks.earlier(next(new))
