"""A request while the engine runs it, what a step computes of it, and how its answer grows by one token."""

from __future__ import annotations

import time
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from freedive.arrays import Floats
from freedive.engine.constraint import TokenConstraint
from freedive.engine.detokenizer import Detokenizer
from freedive.engine.generation import FinishReason, Generation, TokenOutput
from freedive.engine.pooling import Pool
from freedive.engine.repetition import RepetitionDetector
from freedive.engine.sampler import Sampler, logprobs
from freedive.engine.sampling import Sampling
from freedive.engine.scoring import PromptScores
from freedive.engine.speculation import MtpDrafter, PromptLookup
from freedive.text.dialects.dialect import Event


class Save(NamedTuple):
    """A copy of a state to be made as it passes ``position``."""

    position: int
    slot: int


@dataclass(slots=True, eq=False)
class Sequence:
    """A request inside the engine. ``tokens`` are prompt and answer so far.

    The keys and values of the first ``num_cached_tokens`` are cached.

    It ends with one of ``stop_ids`` or, at the latest, with ``max_length`` tokens. ``slot`` is its row of the page
    table, -1 while it waits. It shares pages with requests of the same ``cache_salt`` only: the first
    ``num_registered`` of its own can be found, by ``page_keys``. It takes a turn of its ``user``, who takes one of its
    ``tenant``. With a ``pool`` nothing is generated. Its per-sequence state stands at ``state_end``: the tokens from
    there to ``num_cached_tokens`` were accepted drafts, or it is loaded already and their pages follow; copies of it
    have been ``saved``. When it starts or is removed, ``successor`` gives the request that is queued next of those that
    were submitted together.
    """

    generation: Generation
    sampling: Sampling
    sampler: Sampler
    detokenizer: Detokenizer
    tokens: list[int]
    max_length: int
    stop_ids: frozenset[int]
    constraint: TokenConstraint | None = None
    pool: Pool | None = None
    scores: PromptScores | None = None
    repetition: RepetitionDetector | None = None
    cache_salt: str = ""
    user: str = ""
    tenant: str = ""
    page_keys: list[bytes] = field(default_factory=list)
    lookup: PromptLookup = field(default_factory=PromptLookup)
    mtp: MtpDrafter = field(default_factory=MtpDrafter)
    num_cached_tokens: int = 0
    num_registered: int = 0
    slot: int = -1
    state_end: int = 0
    saved: list[Save] = field(default_factory=list)
    answer_key: bytes = b""
    successor: Callable[[], Sequence | None] | None = None

    @property
    def num_pending_tokens(self) -> int:
        """Tokens still to be computed: 1 when decoding."""
        return len(self.tokens) - self.num_cached_tokens

    @property
    def is_scored(self) -> bool:
        """Whether logits of the prompt are wanted that have not been computed yet."""
        return self.scores is not None and not self.scores.complete

    @property
    def needs_all(self) -> bool:
        """Whether all tokens must be computed, since what the model makes of each is wanted."""
        return self.pool is not None or self.is_scored

    @property
    def is_resuming(self) -> bool:
        """Whether its state is loaded, and pages before it are still to come."""
        return self.state_end > self.num_cached_tokens

    def rewind(self) -> None:
        """Compute all tokens anew, but for what is found again."""
        self.num_cached_tokens = self.num_registered = self.state_end = 0

    def restart(self) -> None:
        """Back to the queue: prompt and answer so far have to be computed anew."""
        self.rewind()
        self.slot, self.saved, self.answer_key = -1, [], b""
        self.generation.timings.num_preemptions += 1


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """What a step computes of a sequence: ``num_tokens`` of its pending tokens, then the tokens of ``draft``.

    ``saves`` are snapshots of its per-sequence state.
    """

    sequence: Sequence
    num_tokens: int
    draft: abc.Sequence[int] = ()
    saves: abc.Sequence[Save] = ()

    @property
    def tokens(self) -> list[int]:
        """The tokens of its rows."""
        start = self.sequence.num_cached_tokens
        return [*self.sequence.tokens[start : start + self.num_tokens], *self.draft]

    @property
    def output_rows(self) -> range:
        """The rows whose logits are needed: all rows of a prompt that is scored; else those of the newest token and
        of every draft token, if no token is pending afterwards.
        """
        num_rows = self.num_tokens + len(self.draft)
        if self.sequence.is_scored:
            return range(num_rows)
        return range(self.num_tokens - 1, num_rows) if self.completes and not self.sequence.pool else range(0)

    @property
    def completes(self) -> bool:
        """Whether no token is pending after the step, so that the next can be sampled."""
        return self.num_tokens == self.sequence.num_pending_tokens


StepPlan = list[ScheduledSequence]
"""A step: one entry for each sequence that takes part."""


def next_output(sequence: Sequence, logits: Floats) -> TokenOutput:
    """Choose the next token of ``sequence`` under ``logits``; return its output."""
    token = _sample(sequence, logits)
    sequence.tokens.append(token)
    timings, num_top = sequence.generation.timings, sequence.sampling.logprobs
    timings.num_generated += 1
    timings.first_token_at = timings.first_token_at or time.perf_counter()
    events, reason = _read(sequence, token)
    return TokenOutput(
        events,
        (token,),
        reason,
        None if num_top is None else (logprobs(logits, token, num_top),),
        timings if reason else None,
        sequence.detokenizer.stop_string,
        is_thinking=sequence.detokenizer.is_thinking,
        prompt_logprobs=sequence.scores.taken() if sequence.scores else (),
    )


def empty_output(sequence: Sequence) -> TokenOutput:
    """The only output of a ``sequence`` that generates no tokens, after its prompt has been computed."""
    prompt_logprobs = sequence.scores.taken() if sequence.scores else ()
    return TokenOutput((), (), "length", timings=sequence.generation.timings, prompt_logprobs=prompt_logprobs)


def _sample(sequence: Sequence, logits: Floats) -> int:
    if not sequence.constraint:
        return sequence.sampler(logits)
    token = sequence.sampler(logits, sequence.constraint.allowed())
    sequence.constraint.take(token)
    return token


def _read(sequence: Sequence, token: int) -> tuple[list[Event], FinishReason | None]:
    """The events that ``token``, the newest of ``sequence``, adds, and why the answer ends with it, if it does."""
    stream = sequence.detokenizer
    events = [] if token in sequence.stop_ids else stream.push(token)
    reason = _finish_reason(sequence, token)
    if reason:
        events += stream.close()
    return events, "stop" if stream.stopped else reason


def _finish_reason(sequence: Sequence, token: int) -> FinishReason | None:
    """Why the answer of ``sequence`` ends with ``token``, stop strings aside."""
    if token in sequence.stop_ids or (sequence.constraint is not None and sequence.constraint.complete):
        return "stop"
    if len(sequence.tokens) == sequence.max_length:
        return "length"
    return "repetition" if sequence.repetition and sequence.repetition.add(token) else None
