"""A request with the answers that it had, to be asked again: the same, or where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from freedive.engine.request import STRICT, GenerationRequest, read_json, read_sampling, write_json
from freedive.engine.sampling import Sampling
from freedive.engine.submission import Job
from freedive.errors import UserError
from freedive.text.prompt import Prompt


@dataclass(frozen=True)
class RecordedAnswer:
    """The tokens of one answer, what ended it, and the ``seed`` that it was sampled with."""

    seed: int
    token_ids: tuple[int, ...]
    finish_reason: str


@dataclass(frozen=True)
class Recording:
    """``answers`` to ``request``, ``n`` for each input in their order; ``made_by`` tells of code, machine and settings.

    The request says all of its sampling, so that it does not depend on what a model recommends.
    """

    __pydantic_config__: ClassVar = STRICT

    request: GenerationRequest
    answers: tuple[RecordedAnswer, ...]
    made_by: Mapping[str, str]

    def to_json(self) -> str:
        """The recording as JSON. UserError where a part of it has none."""
        return write_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Recording:
        """The recording that :meth:`to_json` wrote. UserError for anything else."""
        recording = read_json(cls, text)
        request = replace(recording.request, sampling=read_sampling(recording.request.sampling))
        if len(recording.answers) != len(request.inputs) * request.n:
            what = (
                f"{len(recording.answers)} answers are recorded, but {len(request.inputs) * request.n} were asked for"
            )
            raise UserError(what, "Record the request again")
        return replace(recording, request=request)

    def jobs(self, prompts: Sequence[Prompt], sampling: Sampling, max_context: int) -> list[Job]:
        """One for each answer, as :meth:`freedive.engine.request.GenerationRequest.jobs`, with its seed."""
        return [
            replace(job, sampling=replace(job.sampling, seed=answer.seed))
            for job, answer in zip(self.request.jobs(prompts, sampling, max_context), self.answers, strict=True)
        ]


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The place of the first token that differs, or that only one of them has; None where they are the same."""
    if tuple(one) == tuple(other):
        return None
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
