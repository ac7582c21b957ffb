"""The stage that learns from a teacher, in either way."""

from __future__ import annotations

from dataclasses import replace

from freedive.errors import UserError
from freedive.train import sources, traces
from freedive.train.config import ON_POLICY
from freedive.train.folder import DISTILL, NEWEST_FIRST, Bench, write_json
from freedive.train.on_policy import Pupil, teacher_at
from freedive.train.progress import go_through
from freedive.train.shards import write_shards
from freedive.train.trainer import start
from freedive.train.words import rendered


def distill(bench: Bench) -> None:
    """Go on from the newest weights, with a teacher: on what it says, or on what it thinks of our own answers."""
    folder, settings = bench.folder, bench.run.distill
    if not settings.teacher:
        raise UserError("There is no teacher", "Name one: distill.teacher=http://localhost:8000/v1, or a folder")
    given = bench.trained(*NEWEST_FIRST[1:])
    if settings.kind == ON_POLICY:
        weights = start(bench.model(), settings.seed, given)
        with teacher_at(settings.teacher, bench.words(), bench.run.model.max_context) as teacher:
            pupil = Pupil(bench.model(), settings, bench.words(), folder.checkpoints(DISTILL), weights, teacher)
            pupil.resume()
            go_through(pupil, DISTILL, folder.metrics(DISTILL))
        return
    if not bench.has(DISTILL):
        _collect(bench)
    own = {name: getattr(settings, name) for name in ("steps", "lr", "clip", "save_every", "seed")}
    bench.supervised(DISTILL, replace(bench.run.sft, **own), given)


def _collect(bench: Bench) -> None:
    """Have the teacher answer, and make data of what is right."""
    folder, words = bench.folder, bench.words()
    given = traces.gather(bench.run.distill, folder.answers)
    kept, counts = traces.right_ones(given, words, bench.run.model.max_context)
    write_json(folder.root / "distill.json", counts)
    bench.say("distill: {asked:,} asked, {answered:,} answered, {right:,} right, {kept:,} kept".format_map(counts))
    if not kept:
        raise UserError(
            "No answer is of use", f"See what the teacher says in {folder.answers}; change distill.instruction"
        )
    num_bytes = sum(len(sources.characters(record).encode()) for record in kept)
    made = write_shards(folder.data(DISTILL), (rendered(r, words) for r in kept), num_bytes, folder.vocabulary)
    rounds = bench.run.distill.steps * bench.run.sft.step_tokens / made["tokens"]
    bench.say(f"distill: {made['tokens']:,} tokens, which its steps go through {rounds:.1f} times")
