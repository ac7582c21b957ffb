"""The distillation stage: trains on a teacher's stored replies, or on-policy."""

from __future__ import annotations

from dataclasses import replace

from freedive.errors import UserError
from freedive.train.data import sources, teacher_data
from freedive.train.data.chat_tokenizer import encode_record
from freedive.train.data.shards import write_shards
from freedive.train.rl.on_policy import Student, teacher_at
from freedive.train.run.config import ON_POLICY
from freedive.train.run.context import DISTILL, NEWEST_FIRST, RunContext
from freedive.train.run.folder import write_json
from freedive.train.run.progress import run_steps
from freedive.train.run.trainer import start


def distill(context: RunContext) -> None:
    """Trains the newest weights with a teacher: on its replies, or on its distributions over the student's answers."""
    folder, settings = context.folder, context.run.distill
    if not settings.teacher:
        raise UserError("There is no teacher", "Name one: distill.teacher=http://localhost:8000/v1, or a folder")
    given = context.trained(*NEWEST_FIRST[1:])
    if settings.kind == ON_POLICY:
        weights = start(context.model(), settings.seed, given)
        with teacher_at(settings.teacher, context.chat_tokenizer(), context.run.model.max_context) as teacher:
            student = Student(
                context.model(),
                settings,
                context.chat_tokenizer(),
                folder.checkpoints(DISTILL),
                weights,
                teacher,
                precision=context.run.precision,
            )
            student.resume()
            run_steps(student, DISTILL, folder.metrics(DISTILL))
        return
    if not context.has(DISTILL):
        _collect(context)
    own = {name: getattr(settings, name) for name in ("steps", "lr", "clip", "save_every", "seed")}
    context.supervised(DISTILL, replace(context.run.sft, **own), given)


def _collect(context: RunContext) -> None:
    """Collects the teacher's replies and makes training data of the correct ones."""
    folder, chat_tokenizer = context.folder, context.chat_tokenizer()
    given = teacher_data.collect_replies(context.run.distill, folder.answers)
    kept, counts = teacher_data.correct_replies(given, chat_tokenizer, context.run.model.max_context)
    write_json(folder.root / "distill.json", counts)
    context.say("distill: {asked:,} asked, {answered:,} answered, {right:,} right, {kept:,} kept".format_map(counts))
    if not kept:
        raise UserError(
            "No answer is of use", f"See what the teacher says in {folder.answers}; change distill.instruction"
        )
    num_bytes = sum(len(sources.characters(record).encode()) for record in kept)
    made = write_shards(
        folder.data(DISTILL), (encode_record(r, chat_tokenizer) for r in kept), num_bytes, folder.vocabulary
    )
    rounds = context.run.distill.steps * context.run.sft.step_tokens / made["tokens"]
    context.say(f"distill: {made['tokens']:,} tokens, which its steps go through {rounds:.1f} times")
