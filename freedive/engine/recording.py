"""A recording stores a request and its answers, so that a replay can compare new answers with them."""

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
    """The tokens of one answer, its finish reason, and the ``seed`` of its sampling."""

    seed: int
    token_ids: tuple[int, ...]
    finish_reason: str


@dataclass(frozen=True)
class Recording:
    """A ``request`` and its ``answers``, ``n`` for each input in the order of the inputs.

    ``made_by`` describes the code, the machine and the settings. ``request.sampling`` has all fields, so that it does
    not depend on the defaults that a model recommends.
    """

    __pydantic_config__: ClassVar = STRICT

    request: GenerationRequest
    answers: tuple[RecordedAnswer, ...]
    made_by: Mapping[str, str]

    def to_json(self) -> str:
        """Returns the recording as JSON. Raises UserError if a value cannot be written as JSON."""
        return write_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Recording:
        """Reads a recording that :meth:`to_json` wrote. Raises UserError for any other text."""
        recording = read_json(cls, text)
        request = replace(recording.request, sampling=read_sampling(recording.request.sampling))
        if len(recording.answers) != len(request.inputs) * request.n:
            what = (
                f"{len(recording.answers)} answers are recorded, but {len(request.inputs) * request.n} were asked for"
            )
            raise UserError(what, "Record the request again")
        return replace(recording, request=request)

    def jobs(self, prompts: Sequence[Prompt], sampling: Sampling, max_context: int) -> list[Job]:
        """Returns one job for each answer, with the seed of the answer.

        The arguments are those of :meth:`freedive.engine.request.GenerationRequest.jobs`.
        """
        return [
            replace(job, sampling=replace(job.sampling, seed=answer.seed))
            for job, answer in zip(self.request.jobs(prompts, sampling, max_context), self.answers, strict=True)
        ]


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Returns the index of the first token in which ``one`` and ``other`` differ, or None if they are equal.

    If one is a prefix of the other, returns the length of the shorter.
    """
    if tuple(one) == tuple(other):
        return None
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
