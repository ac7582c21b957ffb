"""Long work on models that the page began: it belongs to the server, whether somebody watches or not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal
from uuid import uuid4

from freedive.errors import NotFound, Overloaded, UserError
from freedive.json_object import Json
from freedive.server.library.line import Progress

logger = logging.getLogger(__name__)

MAX_JOBS = 32
"""The most jobs that run, wait or have failed at the same time."""

Kind = Literal["download", "quantize", "finetune"]


@dataclass(eq=False)
class Job:
    """One piece of work on the model named ``model``. The progress of fine-tuning counts steps instead of bytes.

    ``format`` tells apart what is made of the model: the format of a quantised copy, or the name of a fine-tuned one.
    """

    kind: Kind
    model: str
    format: str = ""
    id: str = field(default_factory=lambda: f"job_{uuid4().hex}")
    progress: Progress = field(default_factory=Progress)
    error: str = ""
    task: asyncio.Task[None] | None = None

    @property
    def state(self) -> str:
        """waiting (in line), running or failed. A job that has ended well is no more."""
        return "failed" if self.error else "running" if self.progress.begun else "waiting"

    def facts(self) -> Json:
        """Returns what the page shows. ``left_s`` is the estimated time to the end, None if it is not known."""
        progress = self.progress
        speed, left = progress.bytes_per_s, progress.total - progress.completed
        return {
            "id": self.id,
            "kind": self.kind,
            "model": self.model,
            "format": self.format,
            "state": self.state,
            "error": self.error,
            "total": progress.total,
            "completed": min(progress.completed, progress.total or progress.completed),
            "bytes_per_s": round(speed),
            "left_s": round(left / speed) if speed and left > 0 else None,
        }


Work = Callable[[Progress], Awaitable[None]]


class Jobs:
    """All jobs, in the order in which they began. Belongs to one event loop.

    What a job leaves on the disk is all that outlives it: a download that is stopped is continued by another job.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def facts(self) -> list[Json]:
        """Returns the facts of every job."""
        return [job.facts() for job in self._jobs.values()]

    def of(self, model: str) -> Job | None:
        """Returns a job on this model that has not failed."""
        return next((job for job in self._jobs.values() if job.model == model and not job.error), None)

    def begin(self, job: Job, work: Work) -> Job:
        """Begins a job and returns it, or the one that does the same already. A failed one is replaced."""
        for other in list(self._jobs.values()):
            if (other.kind, other.model, other.format) == (job.kind, job.model, job.format):
                if not other.error:
                    return other
                del self._jobs[other.id]
        if len(self._jobs) >= MAX_JOBS:
            raise Overloaded(f"There are {MAX_JOBS} jobs already", "Wait for the end of one, or cancel it")
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._run(job, work))
        return job

    def holds(self, id: str) -> bool:
        """Returns whether a job with this id runs, waits or has failed."""
        return id in self._jobs

    def find(self, id: str) -> Job:
        """Returns the job with this id. Raises NotFound."""
        if job := self._jobs.get(id):
            return job
        raise NotFound("This job has ended", "Read the list of models again", param="id")

    async def stop(self, job: Job) -> None:
        """Ends a job, and forgets one that has failed. What it left on the disk stays."""
        self._jobs.pop(job.id, None)
        if job.task:
            job.task.cancel()
            await asyncio.gather(job.task, return_exceptions=True)

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Stops all jobs after the block."""
        try:
            yield
        finally:
            for job in list(self._jobs.values()):
                await self.stop(job)

    async def _run(self, job: Job, work: Work) -> None:
        try:
            await work(job.progress)
        except UserError as error:
            job.error = str(error)
        except Exception:
            logger.exception("job %s", job.id)
            job.error = "The server failed. Try again"
        else:
            self._jobs.pop(job.id, None)
