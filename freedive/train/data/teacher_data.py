"""Training data from a teacher's replies: replies are stored as they arrive, and only correct ones are used.

Rejection sampling (Yuan et al. 2023, RFT; DeepSeek-R1, section 2.3.3): the teacher answers each prompt several times,
and the distinct replies that the verifier accepts become chats.
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
from freedive.json_object import Json
from freedive.train.data.chat_tokenizer import SPECIAL, ChatTokenizer
from freedive.train.data.data_files import values
from freedive.train.data.stories import Record
from freedive.train.data.tasks import END_THINK, THINK, Task, tasks
from freedive.train.data.teacher import Failure, Reply, Teacher, connected
from freedive.train.run.config import Distillation
from freedive.train.run.progress import step_bar, stop_signals

MAX_FAILURES = 8
"""Consecutive failures after which the teacher is considered unreachable."""

GLANCE_SECONDS = 0.5
"""Interval in seconds at which a signal to stop is checked while no reply arrives."""

TASK_SEED = 2
"""Added to the seed, so that the teacher gets other tasks than those that fine-tuning has shown."""

Key = tuple[str, str, int]


@dataclass(frozen=True)
class TeacherPrompt:
    """A prompt for the teacher, the correct ``answer`` (None: any answer is accepted), and the kind of ``task``."""

    prompt: str
    answer: str | None = None
    task: str = ""

    def passes(self, said: str) -> bool:
        """Returns whether ``said`` has the correct answer after its thoughts."""
        return self.answer is None or Task(self.task, self.prompt, "", self.answer).reward(said) == 1


@dataclass(frozen=True)
class StoredReply:
    """A line of the replies file: reply number ``sample`` to ``prompt``; ``asked`` is the :func:`teacher_label`."""

    asked: str
    prompt: str
    sample: int
    said: str
    whole: bool

    @property
    def key(self) -> Key:
        return self.asked, self.prompt, self.sample


Replies = Sequence[tuple[TeacherPrompt, StoredReply | None]]
"""Each prompt with its stored reply, or None."""


def teacher_label(settings: Distillation) -> str:
    """Returns a label of the teacher and its settings.

    Replies are stored under it, so that changes ask everything again.
    """
    name = settings.model or settings.teacher
    return f"{name}, temperature {settings.temperature}, {settings.max_tokens} tokens: {settings.instruction}"


def teacher_prompts(settings: Distillation) -> list[TeacherPrompt]:
    """Returns the distinct prompts for the teacher: those of the user's files, or tasks that are not held out."""
    if settings.prompts:
        found = (_teacher_prompt(value, place) for value, place in values(settings.prompts, "distill.prompts"))
        return list(dict.fromkeys(found))
    made = islice(tasks(settings.seed + TASK_SEED, held_out=False), settings.num_tasks)
    return list(dict.fromkeys(TeacherPrompt(task.question, task.answer, task.kind) for task in made))


def _teacher_prompt(value: Any, place: str) -> TeacherPrompt:
    match value:
        case {"prompt": str(prompt)} if isinstance(answer := value.get("answer"), str | int | float | None):
            return TeacherPrompt(prompt, None if answer is None else str(answer).strip(), str(value.get("task") or ""))
    raise UserError(f"{place} is no prompt", 'Write {"prompt": ..., "answer": ..., "task": ...}, the last two if known')


def collect_replies(settings: Distillation, path: Path) -> Replies:
    """Returns the replies to all prompts; asks the teacher for those that ``path`` (JSONL) does not hold yet.

    Raises UserError if a signal stopped it or the address is not valid, and Unavailable if the teacher cannot be
    reached. Stored replies remain, and a later call asks for the rest.
    """
    wanted = [(question, i) for question in teacher_prompts(settings) for i in range(settings.num_samples)]
    asked, stored = teacher_label(settings), _read(path)
    missing = [(question, i) for question, i in wanted if (asked, question.prompt, i) not in stored]
    if missing:
        asyncio.run(_ask(settings, missing, path, len(wanted)))
        stored = _read(path)
    return [(question, stored.get((asked, question.prompt, i))) for question, i in wanted]


def correct_replies(given: Replies, chat_tokenizer: ChatTokenizer, longest: int) -> tuple[list[Record], Json]:
    """Returns a chat for each distinct correct reply of at most ``longest`` tokens, and the counts and shares."""
    chats: dict[tuple[str, str], Record] = {}
    right: dict[str, list[bool]] = defaultdict(list)
    for question, answer in given:
        if answer is None:
            continue
        right[question.task].append(answer.whole and _well_formed(answer.said) and question.passes(answer.said))
        if right[question.task][-1]:
            said = [{"role": "user", "content": answer.prompt}, {"role": "assistant", "content": answer.said}]
            chats[answer.prompt, answer.said] = {"messages": said}
    kept = [record for record in chats.values() if len(chat_tokenizer.chat(record["messages"])[0]) <= longest]
    flat = [each for of_task in right.values() for each in of_task]
    counts = {"asked": len(given), "answered": len(flat), "right": sum(flat), "kept": len(kept)}
    return kept, counts | {f"right_{task}": sum(each) / len(each) for task, each in right.items() if task}


def _well_formed(said: str) -> bool:
    """Returns whether a reply is not empty, has at most one thought, and none of the other special tokens of a chat."""
    others = set(SPECIAL) - {THINK, END_THINK}
    return said != "" and said.count(THINK) == said.count(END_THINK) <= 1 and not any(mark in said for mark in others)


def _read(path: Path) -> dict[Key, StoredReply]:
    """Reads the stored replies; cuts off an incomplete last line, so that more can be appended."""
    if not path.exists():
        return {}
    with path.open("rb+") as file:
        whole = file.read()
        whole = whole[: whole.rfind(b"\n") + 1]
        file.truncate(len(whole))
    answers = (StoredReply(**json.loads(line)) for line in whole.splitlines())
    return {answer.key: answer for answer in answers}


async def _ask(settings: Distillation, missing: Sequence[tuple[TeacherPrompt, int]], path: Path, total: int) -> None:
    """Appends the replies to ``missing`` to the file as they arrive, and shows a progress bar."""
    done, right = total - len(missing), Counter[bool]()
    with ExitStack() as stack:
        show = stack.enter_context(step_bar("asking", total, done))
        signals = stack.enter_context(stop_signals())
        file = stack.enter_context(path.open("a", encoding="utf-8"))

        def keep(question: TeacherPrompt, sample: int, reply: Reply) -> None:
            nonlocal done
            answer = StoredReply(teacher_label(settings), question.prompt, sample, reply.text, reply.whole)
            file.write(json.dumps(asdict(answer)) + "\n")
            file.flush()
            done += 1
            right[question.passes(reply.text)] += 1
            show(done, f"{right[True] / right.total():.0%} right")

        async with connected(settings) as teacher:
            await _replies(teacher, missing, keep, signals)
    if signals:
        raise UserError(f"Stopped with {done} of {total} answers, which are kept", "Run the same command to go on")


async def _replies(
    teacher: Teacher,
    missing: Sequence[tuple[TeacherPrompt, int]],
    keep: Callable[[TeacherPrompt, int, Reply], None],
    signals: Sequence[int],
) -> None:
    """Asks several prompts in parallel until all are answered or have failed, or ``signals`` is no longer empty."""
    waiting, failures = iter(missing), 0
    pending: dict[asyncio.Task[Reply], tuple[TeacherPrompt, int]] = {}
    try:
        while not signals:
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
