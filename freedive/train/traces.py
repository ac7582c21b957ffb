"""What a teacher answers, as data to learn from: asked once, kept on disk, and only the right answers used.

Rejection sampling (Yuan et al. 2023, RFT; DeepSeek-R1, section 2.3.3): several answers to each prompt, those that the
verifier passes, each once.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from freedive.errors import Unavailable, UserError
from freedive.train.config import Distillation
from freedive.train.data_files import values
from freedive.train.progress import step_bar, until_told
from freedive.train.settings import Json
from freedive.train.stories import Record
from freedive.train.tasks import END_THINK, THINK, Task, tasks
from freedive.train.teacher import Failure, Reply, Teacher, connected
from freedive.train.words import SPECIAL, Words

MAX_FAILURES = 8
"""One after the other, after which the teacher is held to be gone."""

GLANCE_SECONDS = 0.5
"""How often a signal to stop is looked for while nothing comes."""

TASK_SEED = 2
"""Added to the seed, so that other tasks are asked than fine-tuning has shown."""

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Question:
    """``answer`` is None where no answer is known: then any is right. ``task`` names its kind."""

    prompt: str
    answer: str | None = None
    task: str = ""

    def passes(self, said: str) -> bool:
        """Whether ``said`` has the right answer behind its thoughts."""
        return self.answer is None or Task(self.task, self.prompt, "", self.answer).reward(said) == 1


@dataclass(frozen=True)
class Answer:
    """A line of the file: the ``sample``-th that was said to ``prompt``; ``asked``: by whom, and how (:func:`way`)."""

    asked: str
    prompt: str
    sample: int
    said: str
    whole: bool

    @property
    def key(self) -> Key:
        return self.asked, self.prompt, self.sample


Given = Sequence[tuple[Question, Answer | None]]
"""What was asked, and the answer, if there was one."""


def way(settings: Distillation) -> str:
    """A name for the teacher and how it is asked: with another, everything is asked anew."""
    name = settings.model or settings.teacher
    return f"{name}, temperature {settings.temperature}, {settings.max_tokens} tokens: {settings.instruction}"


def questions(settings: Distillation) -> list[Question]:
    """What is asked: the prompts of the user's files, else tasks that are not held out; each once."""
    if settings.prompts:
        found = (_question(value, place) for value, place in values(settings.prompts, "distill.prompts"))
        return list(dict.fromkeys(found))
    made = islice(tasks(settings.seed + TASK_SEED, held_out=False), settings.num_tasks)
    return list(dict.fromkeys(Question(task.question, task.answer, task.kind) for task in made))


def _question(value: Any, place: str) -> Question:
    match value:
        case {"prompt": str(prompt)} if isinstance(answer := value.get("answer"), str | int | float | None):
            return Question(prompt, None if answer is None else str(answer).strip(), str(value.get("task") or ""))
    raise UserError(f"{place} is no prompt", 'Write {"prompt": ..., "answer": ..., "task": ...}, the last two if known')


def gather(settings: Distillation, path: Path) -> Given:
    """The answers to all questions, asking for those that ``path`` (JSONL) does not hold yet.

    Raises UserError where it was told to stop or the address cannot be a teacher's, Unavailable where the teacher is
    gone: what has been answered stays, and a later call asks for the rest.
    """
    wanted = [(question, i) for question in questions(settings) for i in range(settings.num_samples)]
    asked, known = way(settings), _read(path)
    missing = [(question, i) for question, i in wanted if (asked, question.prompt, i) not in known]
    if missing:
        asyncio.run(_ask(settings, missing, path, len(wanted)))
        known = _read(path)
    return [(question, known.get((asked, question.prompt, i))) for question, i in wanted]


def right_ones(given: Given, words: Words, longest: int) -> tuple[list[Record], Json]:
    """Chats made of the right answers, each once, that ``longest`` tokens hold; and how many were what."""
    chats: dict[tuple[str, str], Record] = {}
    right: dict[str, list[bool]] = defaultdict(list)
    for question, answer in given:
        if answer is None:
            continue
        right[question.task].append(answer.whole and _well_formed(answer.said) and question.passes(answer.said))
        if right[question.task][-1]:
            said = [{"role": "user", "content": answer.prompt}, {"role": "assistant", "content": answer.said}]
            chats[answer.prompt, answer.said] = {"messages": said}
    kept = [record for record in chats.values() if len(words.chat(record["messages"])[0]) <= longest]
    flat = [each for of_task in right.values() for each in of_task]
    counts = {"asked": len(given), "answered": len(flat), "right": sum(flat), "kept": len(kept)}
    return kept, counts | {f"right_{task}": sum(each) / len(each) for task, each in right.items() if task}


def _well_formed(said: str) -> bool:
    """Something, with at most one thought and none of a chat's other marks, which would be read as such."""
    others = set(SPECIAL) - {THINK, END_THINK}
    return said != "" and said.count(THINK) == said.count(END_THINK) <= 1 and not any(mark in said for mark in others)


def _read(path: Path) -> dict[Key, Answer]:
    """The file's answers. A last line that was cut short is cut off, so that others can follow."""
    if not path.exists():
        return {}
    with path.open("rb+") as file:
        whole = file.read()
        whole = whole[: whole.rfind(b"\n") + 1]
        file.truncate(len(whole))
    answers = (Answer(**json.loads(line)) for line in whole.splitlines())
    return {answer.key: answer for answer in answers}


async def _ask(settings: Distillation, missing: Sequence[tuple[Question, int]], path: Path, total: int) -> None:
    """Append the answers to ``missing`` to the file, as they come, with a bar."""
    done, right = total - len(missing), Counter[bool]()
    with ExitStack() as stack:
        show = stack.enter_context(step_bar("asking", total, done))
        told = stack.enter_context(until_told())
        file = stack.enter_context(path.open("a", encoding="utf-8"))

        def keep(question: Question, sample: int, reply: Reply) -> None:
            nonlocal done
            answer = Answer(way(settings), question.prompt, sample, reply.text, reply.whole)
            file.write(json.dumps(asdict(answer)) + "\n")
            file.flush()
            done += 1
            right[question.passes(reply.text)] += 1
            show(done, f"{right[True] / right.total():.0%} right")

        async with connected(settings) as teacher:
            await _replies(teacher, missing, keep, told)
    if told:
        raise UserError(f"Stopped with {done} of {total} answers, which are kept", "Run the same command to go on")


async def _replies(
    teacher: Teacher,
    missing: Sequence[tuple[Question, int]],
    keep: Callable[[Question, int, Reply], None],
    told: Sequence[int],
) -> None:
    """Ask some at a time, until all are answered or have failed, or something is ``told``."""
    waiting, failures = iter(missing), 0
    pending: dict[asyncio.Task[Reply], tuple[Question, int]] = {}
    try:
        while not told:
            for question, sample in islice(waiting, teacher.settings.num_parallel - len(pending)):
                pending[asyncio.create_task(teacher.reply(question.prompt))] = question, sample
            if not pending:
                return
            done, _ = await asyncio.wait(pending, timeout=GLANCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                asked = pending.pop(task)
                try:
                    keep(*asked, task.result())
                    failures = 0
                except Failure as error:
                    failures += 1
                    if failures >= min(MAX_FAILURES, len(missing)):
                        what = f"The teacher fails again and again: {error}"
                        raise Unavailable(
                            what, "See to it, and run the same command: what it has said is kept"
                        ) from None
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
