"""Tasks with one correct answer, made from a seed and verified exactly; held out by the hash of the question."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from freedive.train.data.stories import Message, Record

THINK, END_THINK = "<think>", "</think>"
DIRECT, AFTER_ANOTHER = 0.7, 0.5
"""Shares of the worked examples.

``DIRECT``: of the examples that come alone, those answered without thoughts. Such answers are often wrong, which
reinforcement has to change. ``AFTER_ANOTHER``: of all examples, those that come after another task, so that the model
learns not to mix up their digits.
"""

HELD_OUT = 0.1

_THOUGHT = re.compile(rf"{THINK}(.*?){END_THINK}(.*)", re.DOTALL)


@dataclass(frozen=True)
class Task:
    """A task: ``steps`` derive the ``answer`` in words; ``before`` are messages that come before the question."""

    kind: str
    question: str
    steps: str
    answer: str
    before: tuple[Message, ...] = ()

    @property
    def messages(self) -> list[Message]:
        """The messages that ask a model the question."""
        return [*self.before, {"role": "user", "content": self.question}]

    @property
    def held_out(self) -> bool:
        return zlib.crc32(self.question.encode()) % 1000 < 1000 * HELD_OUT

    def reward(self, said: str) -> float:
        """Returns 1 for the correct answer, 0.1 for a wrong answer after exactly one thought, and 0 otherwise."""
        thought = _THOUGHT.fullmatch(said)
        answer = thought[2] if thought else said
        if answer.strip() == self.answer:
            return 1.0
        well_formed = thought is not None and said.count(THINK) == said.count(END_THINK) == 1
        return 0.1 if well_formed else 0.0


def chain(source: random.Random) -> Task:
    """Makes a task of arithmetic modulo 10 in four to eight steps."""
    value = source.randrange(10)
    words, steps = [f"Start with {value}."], []
    for _ in range(source.randint(4, 8)):
        by, (word, sign, change) = source.randrange(1, 10), source.choice(_CHANGES)
        result = change(value, by) % 10
        words.append(f"{word} {by}.")
        steps.append(f"{value}{sign}{by}={result}")
        value = result
    return Task("chain", f"{' '.join(words)} Keep the last digit.", "; ".join(steps), str(value))


def addition(source: random.Random) -> Task:
    """Makes a sum of two numbers of two to six digits; its steps go digit by digit from the right, with carries."""
    size = source.randint(2, 6)
    a, b = (source.randrange(10 ** (size - 1), 10**size) for _ in range(2))
    carry, steps, digits = 0, [], ""
    for one, other in zip(reversed(str(a)), reversed(str(b)), strict=True):
        total = int(one) + int(other) + carry
        steps.append(f"{one}+{other}+{carry}={total // 10}{total % 10}")
        carry, digits = total // 10, f"{total % 10}{digits}"
    return Task("addition", f"What is {a} + {b}?", "; ".join(steps), str(a + b))


_CHANGES: tuple[tuple[str, str, Callable[[int, int], int]], ...] = (
    ("Add", "+", lambda value, by: value + by),
    ("Subtract", "-", lambda value, by: value - by),
    ("Multiply by", "*", lambda value, by: value * by),
)

KINDS: dict[str, Callable[[random.Random], Task]] = {"chain": chain, "addition": addition}


def tasks(seed: int, held_out: bool) -> Iterator[Task]:
    """Yields tasks without end, of each kind by turns; ``held_out`` ones never appear in training."""
    source = random.Random(f"tasks {seed} {held_out}")
    while True:
        for make in KINDS.values():
            task = make(source)
            while task.held_out != held_out:
                task = make(source)
            yield task


def solutions(count: int, seed: int) -> Iterator[Record]:
    """Yields worked examples for pretraining; all have thoughts."""
    for task in islice(tasks(seed, held_out=False), count):
        yield {"messages": solved(task)}


def chats(count: int, seed: int) -> Iterator[Record]:
    """Yields worked examples for fine-tuning, in the shares ``DIRECT`` and ``AFTER_ANOTHER``."""
    source, others = random.Random(f"worked {seed}"), tasks(seed + 4, held_out=False)
    for task in islice(tasks(seed + 1, held_out=False), count):
        if source.random() < AFTER_ANOTHER:
            yield {"messages": earlier(next(others)) + solved(task)}
        else:
            yield {"messages": answered(task) if source.random() < DIRECT else solved(task)}


def answered(task: Task) -> list[Message]:
    """Returns the question and its answer, without thoughts."""
    return [*task.messages, {"role": "assistant", "content": task.answer}]


def earlier(task: Task) -> list[Message]:
    """Returns the question and its answer as a served chat has them before its last turn; the answer is not learned."""
    asked, answer = answered(task)
    return [asked, {**answer, "weight": 0}]


def solved(task: Task) -> list[Message]:
    """Returns the question and its answer, with the thoughts that derive it."""
    return [*task.messages, {"role": "assistant", "content": f"{THINK}{task.steps}{END_THINK}{task.answer}"}]
