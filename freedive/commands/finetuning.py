"""Fine-tuning for the page of ``freedive serve``, in a process of its own with torch."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from freedive.commands.client_errors import private
from freedive.commands.library import record_files
from freedive.commands.served import for_clients, model_entry
from freedive.errors import Unavailable, UserError
from freedive.hub import cache
from freedive.hub.download_limits import DownloadLimits
from freedive.hub.sources import TUNED
from freedive.json_object import Json
from freedive.server.finetunes.finetuning import Draft, Tell
from freedive.server.finetunes.runs import Curve
from freedive.server.library.line import Progress
from freedive.server.models import ModelEntry

WORKER = "freedive.train.finetune.worker"
NEEDS = ("torch",)
"""Modules of the extra ``train`` that the worker imports."""

POLL_MS = 200
"""Milliseconds between two looks whether the work is still wanted."""

ABOUT = "finetune.json"
"""The file of a fine-tuned model that says what it was made of."""

DATA, RUN = "data", "run"


class LocalFinetuning:
    """The fine-tuning of a server whose models are loaded with the settings ``how``; it leaves ``kept_bytes`` free.

    A model is made in its folder of the cache, and listed there when it is complete. What an earlier server left that
    was killed is deleted.
    """

    offered = True

    def __init__(self, how: Mapping[str, Any], kept_bytes: float) -> None:
        self._how, self._limits = how, DownloadLimits(free_bytes=kept_bytes)
        cache.discard_unfinished(TUNED)

    def missing(self) -> str:
        """Returns what has to be installed first, "" if nothing."""
        lacking = [name for name in NEEDS if not find_spec(name)]
        return f"Fine-tuning needs {', '.join(lacking)}. Install it: pip install 'freedive[train]'" if lacking else ""

    def estimate(self, draft: Draft) -> Json:
        """Returns the worker's plan."""
        self._check()

        def work() -> Json:
            with TemporaryDirectory(prefix="freedive-") as folder:
                return _work("estimate", draft, Path(folder), Progress(), lambda event: None)

        return private(work)()

    def tuned(self) -> list[Json]:
        """Returns what stands in the files of the models that were made, the newest first."""
        found = []
        for model in cache.stored():
            if model.ref.startswith(f"{TUNED}:"):
                with suppress(OSError, ValueError):
                    found.append(json.loads((model.path / ABOUT).read_text("utf-8")) | {"name": model.ref})
        return sorted(found, key=lambda about: str(about.get("date")), reverse=True)

    def tune(self, draft: Draft, progress: Progress, tell: Tell) -> ModelEntry:
        """Makes the model. Nothing is left of one that is given up, or whose process fails."""
        self._check()

        def work() -> ModelEntry:
            ref = f"{TUNED}:{draft.name}"
            with cache.locked(ref):
                if cache.find(ref):
                    raise UserError(f"There is a model {ref} already", "Choose another name", param="name")
                self._make(ref, draft, progress, tell)
            return for_clients(model_entry(ref, self._how, ref))

        return private(work)()

    def _check(self) -> None:
        if missing := self.missing():
            raise UserError(*missing.split(". ", 1))

    def _make(self, ref: str, draft: Draft, progress: Progress, tell: Tell) -> None:
        whole = cache.model_folder(ref)
        shutil.rmtree(whole, ignore_errors=True)
        part = whole / cache.PARTIAL
        curve = Curve()

        def take(event: Json) -> None:
            if plan := event.get("plan"):
                progress.total = plan["steps"]
                self._limits.check_space(ref, plan["disk_bytes"], whole)
            if "loss" in event:
                progress.advance(1)
            if "step" in event:
                curve.add(event)
            tell(event)

        try:
            part.mkdir(parents=True)
            done = _work("tune", draft, part, progress, take)
            files = whole / cache.FILES
            (part / RUN / "model").rename(files)
            about = {"base": draft.base, "file": draft.file, "date": _now(), "curve": curve.facts()} | done
            (files / ABOUT).write_text(json.dumps(about, ensure_ascii=False) + "\n", "utf-8")
            shutil.rmtree(part)
            record_files(ref, draft.source)
        except BaseException:
            shutil.rmtree(whole, ignore_errors=True)
            raise


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _work(task: str, draft: Draft, folder: Path, progress: Progress, take: Callable[[Json], None]) -> Json:
    """Runs a task of the worker in ``folder``, passes its events to ``take``, and returns its result.

    Raises the worker's UserError, Abandoned, and Unavailable if the process ends early.
    """
    (folder / DATA).mkdir()
    file = folder / DATA / re.sub(r"[^\w.-]+", "-", draft.file)[-100:].lstrip(".-")
    file.write_bytes(draft.data)
    job = {
        **{"task": task, "model": draft.source, "file": str(file), "folder": str(folder / RUN)},
        **{"epochs": draft.epochs, "rank": draft.rank, "learning_rate": draft.learning_rate},
    }
    with (folder / "log").open("wb") as log, _process(log) as process:
        assert process.stdin
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        try:
            for event in _events(process, progress):
                if "done" in event:
                    return dict(event["done"])
                if "error" in event:
                    raise UserError(event["error"], event["remedy"])
                take(event)
        finally:
            process.kill()
    print((folder / "log").read_text("utf-8", "replace")[-4000:], file=sys.stderr, flush=True)
    what = f"The process that fine-tunes has ended early (status {process.returncode})"
    raise Unavailable(what, "It may have lacked memory: free some, or choose a smaller model")


def _process(log: Any) -> subprocess.Popen[bytes]:
    """Starts the worker in a session of its own, so that Ctrl-C reaches the server alone."""
    program = [sys.executable, "-P", "-m", WORKER]
    try:
        return subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0, start_new_session=True
        )
    except OSError as error:
        raise Unavailable(f"The process that fine-tunes cannot be started ({error})", "Try again") from None


def _events(process: subprocess.Popen[bytes], progress: Progress) -> Iterator[Json]:
    """Yields the events of the worker until it ends. Raises Abandoned soon after the work was given up."""
    assert process.stdout
    output, pending = process.stdout.fileno(), b""
    poller = select.poll()
    poller.register(output, select.POLLIN)
    while True:
        progress.check()
        if not poller.poll(POLL_MS):
            continue
        chunk = os.read(output, 1 << 16)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        yield from map(json.loads, lines)
