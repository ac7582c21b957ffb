"""The process in which a server plans and runs fine-tuning: ``python -m freedive.train.finetune.worker``.

The first line of standard input is a job in JSON; standard output has the events, in JSON lines; the last one is
``{"done": ...}`` or ``{"error": ..., "remedy": ...}``. The process ends when its standard input does, so that nothing
trains on when the server was killed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import TextIO

from freedive import machine
from freedive.errors import UserError
from freedive.json_object import Json
from freedive.train.data.sources import parted, read
from freedive.train.finetune import run as finetuning
from freedive.train.finetune.base_model import BaseModel, open_base_model
from freedive.train.finetune.plan import Plan, plan
from freedive.train.finetune.run import FinetuneContext
from freedive.train.finetune.sample import answer, question_of
from freedive.train.model.kernels import prepare, resolved
from freedive.train.run.folder import RunFolder

NICENESS = 10
"""Answers go before training."""

Tell = Callable[[Json], None]


def main() -> None:
    """Does the job of the first line of standard input."""
    job = json.loads(sys.stdin.readline())
    Thread(target=_end_with_server, daemon=True).start()
    os.nice(NICENESS)
    events, sys.stdout = sys.stdout, sys.stderr  # what else is printed is no event
    try:
        result = TASKS[job.pop("task")](job, lambda event: _tell(events, event))
    except UserError as error:
        _tell(events, {"error": error.what, "remedy": error.remedy})
    else:
        _tell(events, {"done": result})


def _end_with_server() -> None:
    while os.read(sys.stdin.fileno(), 1 << 10):
        pass
    os._exit(1)


def _tell(events: TextIO, event: Json) -> None:
    print(json.dumps(event), file=events, flush=True)


def estimate(job: Json, tell: Tell) -> Json:
    """Returns what a run would take. Raises Unavailable if the memory is certainly too small."""
    prepare()
    base = open_base_model(job["model"])
    base.check_memory()
    return _facts(_planned(job, base))


def tune(job: Json, tell: Tell) -> Json:
    """Tells the plan, trains in ``job["folder"]``, tells the steps, and returns a sample of before and after."""
    prepare()
    folder = RunFolder(Path(job["folder"]))
    base = open_base_model(job["model"])
    planned = _planned(job, base)
    tell({"plan": _facts(planned)})
    run = replace(planned.run, precision=resolved(planned.run.precision))
    parts = parted(read(run.data.text), run.data)
    question = question_of(base, [*parts[True], *parts[False]])
    sample = {"question": question.text, "expected": question.expected} if question else {}
    if question:
        sample["before"] = answer(base, base.weights(), question)
        tell({"sample": dict(sample)})
    context = FinetuneContext(run, folder, report=lambda row: tell(_of_step(row)), opened=base)
    trainer = finetuning.tune(context)
    if question:
        sample["after"] = answer(base, trainer.base, question)
    return {"sample": sample}


def _planned(job: Json, base: BaseModel) -> Plan:
    file = job["file"]
    settings = [f"tune.rank={job['rank']}", f"tune.lr={job['learning_rate']}"]
    return plan(base, job["model"], file, list(read([file])), job["epochs"], settings)


def _facts(planned: Plan) -> Json:
    tune = planned.run.tune
    return {
        "epochs": round(planned.epochs, 2),
        "examples": planned.num_examples,
        "held_out": planned.num_held_out,
        "tokens": planned.tokens,
        "learned": planned.learned,
        "cut": planned.num_cut,
        "context": tune.context,
        "steps": tune.steps,
        "step_tokens": tune.step_tokens,
        "seconds": round(planned.seconds),
        "memory_bytes": planned.memory_bytes,
        "free_bytes": machine.available_memory(),
        "disk_bytes": planned.disk_bytes,
    }


def _of_step(row: Json) -> Json:
    return {name: row[name] for name in ("step", "loss", "held_out_loss") if name in row}


TASKS: Mapping[str, Callable[[Json, Tell], Json]] = {"estimate": estimate, "tune": tune}

if __name__ == "__main__":
    main()
