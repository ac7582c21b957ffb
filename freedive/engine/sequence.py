"""A sequence is a request inside the engine. This module also defines the plan of a step and samples the next token."""

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
from freedive.engine.scoring import PromptLogprobs
from freedive.engine.speculation import MtpDrafter, PromptLookup
from freedive.text.dialects.dialect import Event
from freedive.text.thinking_budget import ThinkingBudget, ThoughtConstraint


class Save(NamedTuple):
    """A snapshot to take: a copy of a per-sequence state into ``slot`` when the state is at ``position``."""

    position: int
    slot: int


@dataclass(slots=True, eq=False)
class Sequence:
    """A request inside the engine.

    ``tokens`` are the prompt and the answer so far; the keys and values of the first ``num_cached_tokens`` are cached.
    The sequence ends with a token of ``stop_ids`` or when it has ``max_length`` tokens. ``slot`` is its row of the page
    table, -1 while it waits. It shares pages only with sequences of the same ``cache_salt``. Its first
    ``num_registered`` pages are registered under ``page_keys``. Its service is charged to ``user`` and ``tenant``. A
    sequence with a ``pool`` generates no tokens. ``budget`` tells how its thoughts can be ended, if they can.

    Its per-sequence state is at position ``state_end``. If that is less than ``num_cached_tokens``, the tokens between
    them are accepted draft tokens, which the next step applies; if it is greater, the state was loaded from a snapshot
    and pages before it must still be attached. ``saved`` are the snapshots taken and not yet published.

    When the sequence starts or is removed, ``successor`` returns the next sequence of the same submission.
    """

    generation: Generation
    sampling: Sampling
    sampler: Sampler
    detokenizer: Detokenizer
    tokens: list[int]
    max_length: int
    stop_ids: frozenset[int]
    constraint: TokenConstraint | None = None
    budget: ThinkingBudget | None = None
    pool: Pool | None = None
    scores: PromptLogprobs | None = None
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
        """Number of tokens still to be computed; 1 when decoding."""
        return len(self.tokens) - self.num_cached_tokens

    @property
    def is_scored(self) -> bool:
        """Whether log-probabilities of prompt tokens are requested and not complete."""
        return self.scores is not None and not self.scores.complete

    @property
    def needs_all(self) -> bool:
        """Whether every token must be computed, because hidden states or logits of all tokens are requested."""
        return self.pool is not None or self.is_scored

    @property
    def is_resuming(self) -> bool:
        """Whether its state was loaded from a snapshot and pages before it are still missing."""
        return self.state_end > self.num_cached_tokens

    def end_thoughts(self) -> None:
        """Lets the thoughts of the answer have no more tokens; does nothing if it does not think now."""
        if not (self.budget and self.detokenizer.is_thinking):
            return
        if not isinstance(self.constraint, ThoughtConstraint):  # it had no limit, so the answer was not followed
            self.constraint = self.budget.following(self.tokens[self.generation.num_prompt_tokens :], self.constraint)
        self.constraint.end()

    def rewind(self) -> None:
        """Marks all tokens as not cached; the prefix cache may find pages again."""
        self.num_cached_tokens = self.num_registered = self.state_end = 0

    def restart(self) -> None:
        """Resets a preempted sequence, whose prompt and answer so far must be computed again."""
        self.rewind()
        self.slot, self.saved, self.answer_key = -1, [], b""
        self.generation.timings.num_preemptions += 1


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The part of a step for one sequence: ``num_tokens`` of its pending tokens, then the tokens of ``draft``.

    ``saves`` are the snapshots of its per-sequence state that the step takes.
    """

    sequence: Sequence
    num_tokens: int
    draft: abc.Sequence[int] = ()
    saves: abc.Sequence[Save] = ()

    @property
    def tokens(self) -> list[int]:
        """The tokens of the rows of this sequence in the step."""
        start = self.sequence.num_cached_tokens
        return [*self.sequence.tokens[start : start + self.num_tokens], *self.draft]

    @property
    def output_rows(self) -> range:
        """The rows whose logits are needed: all rows if prompt log-probabilities are requested; else the rows of the
        newest token and of every draft token, if no token is pending after the step.
        """
        num_rows = self.num_tokens + len(self.draft)
        if self.sequence.is_scored:
            return range(num_rows)
        return range(self.num_tokens - 1, num_rows) if self.completes and not self.sequence.pool else range(0)

    @property
    def completes(self) -> bool:
        """Whether no token is pending after the step, so that the next token can be sampled."""
        return self.num_tokens == self.sequence.num_pending_tokens


StepPlan = list[ScheduledSequence]
"""The plan of a step: one entry for each sequence in it."""


def next_output(sequence: Sequence, logits: Floats) -> TokenOutput:
    """Samples the next token of ``sequence`` from ``logits`` and returns its output."""
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
        prompt_logprobs=sequence.scores.pop() if sequence.scores else (),
    )


def empty_output(sequence: Sequence) -> TokenOutput:
    """Returns the only output of a ``sequence`` that generates no tokens, after its prompt has been computed."""
    prompt_logprobs = sequence.scores.pop() if sequence.scores else ()
    return TokenOutput((), (), "length", timings=sequence.generation.timings, prompt_logprobs=prompt_logprobs)


def _sample(sequence: Sequence, logits: Floats) -> int:
    if not sequence.constraint:
        return sequence.sampler(logits)
    token = sequence.sampler(logits, sequence.constraint.allowed())
    sequence.constraint.take(token)
    return token


def _read(sequence: Sequence, token: int) -> tuple[list[Event], FinishReason | None]:
    """Returns the events of ``token``, the newest of ``sequence``, and the finish reason, or None if it continues."""
    stream = sequence.detokenizer
    events = [] if token in sequence.stop_ids else stream.push(token)
    reason = _finish_reason(sequence, token)
    if reason:
        events += stream.close()
    return events, "stop" if stream.stopped else reason


def _finish_reason(sequence: Sequence, token: int) -> FinishReason | None:
    """Returns why the answer ends with ``token``, or None; does not consider stop strings."""
    if token in sequence.stop_ids or (sequence.constraint is not None and sequence.constraint.complete):
        return "stop"
    if len(sequence.tokens) == sequence.max_length:
        return "length"
    return "repetition" if sequence.repetition and sequence.repetition.add(token) else None
