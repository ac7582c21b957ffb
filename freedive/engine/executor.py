"""Executes one step: calls the runner and turns its logits into tokens, embeddings and drafts."""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections import abc
from collections.abc import Callable
from itertools import accumulate, islice, zip_longest

import numpy as np

from freedive.arrays import Floats
from freedive.engine.chunk_sizer import ChunkSizer
from freedive.engine.generation import Delivery, EngineError, TokenOutput
from freedive.engine.kvcache import PageTables
from freedive.engine.sampler import logprobs
from freedive.engine.scheduler import is_decoding, to_batch
from freedive.engine.sequence import ScheduledSequence, Sequence, StepPlan, empty_output, next_output
from freedive.engine.speculation import DraftBudget
from freedive.engine.watch import NUM_TOP, WatchedToken
from freedive.errors import UserError
from freedive.model.batch import Batch, Runner, UnreadableWeights

log = logging.getLogger(__name__)


class StepExecutor:
    """Executes step plans on ``runner`` and counts tokens (see :class:`freedive.engine.stats.EngineStats`).

    It reports the duration of each step to ``chunk_sizer`` or ``draft_budget``. It calls ``finish`` to end a sequence
    with its last output or an error.
    """

    def __init__(
        self,
        runner: Runner,
        chunk_sizer: ChunkSizer,
        draft_budget: DraftBudget | None,
        finish: Callable[[Sequence, Delivery], None],
    ) -> None:
        self.num_steps = self.num_computed_tokens = self.num_read_tokens = self.num_generated_tokens = 0
        self.num_drafted_tokens = self.num_accepted_tokens = 0
        self._runner, self._has_states = runner, runner.states.shape[1] > 0
        self._chunk_sizer = chunk_sizer
        self._draft_budget = draft_budget
        self._finish = finish

    def run(self, plan: StepPlan, pages: PageTables) -> None:
        """Executes ``plan`` and delivers its outputs."""
        start = time.perf_counter()
        for scheduled in plan:
            timings = scheduled.sequence.generation.timings
            timings.started_at = timings.started_at or start
        batch = to_batch(plan, pages, with_states=self._has_states)
        logits = self._runner.step(batch)
        decoding = is_decoding(plan)
        self.num_steps += 1
        self.num_computed_tokens += len(batch.tokens)
        self._embed(plan)
        rows, first = iter(logits), 0
        for scheduled in plan:
            self.num_drafted_tokens += len(scheduled.draft)
            self._take(scheduled, list(islice(rows, len(scheduled.output_rows))), first + scheduled.num_tokens - 1)
            first += scheduled.num_tokens + len(scheduled.draft)
        if self._draft_budget and self._runner.drafts:
            self._draft(plan, batch)
        seconds = time.perf_counter() - start
        if self._draft_budget and decoding:
            self._draft_budget.record(len(batch.tokens), seconds)
        if not decoding:
            self._chunk_sizer.record(len(batch.tokens), seconds)

    def _take(self, scheduled: ScheduledSequence, logits: abc.Sequence[Floats], newest: int) -> None:
        """Updates the sequence of ``scheduled`` after a step with the ``logits`` of its output rows.

        ``newest`` is the row of its newest token in the step.
        """
        sequence = scheduled.sequence
        if sequence.scores:
            sequence.scores.add(sequence.num_cached_tokens, logits)
        generation = sequence.generation
        unread = max(generation.num_prompt_tokens - sequence.num_cached_tokens, 0)
        self.num_read_tokens += min(unread, scheduled.num_tokens)
        sequence.num_cached_tokens += scheduled.num_tokens
        generation.num_prefilled_tokens = min(sequence.num_cached_tokens, generation.num_prompt_tokens)
        sequence.state_end = sequence.num_cached_tokens
        sequence.saved.extend(scheduled.saves)
        if sequence.num_pending_tokens or sequence.pool:
            return
        if len(sequence.tokens) == sequence.max_length:
            self._finish(sequence, empty_output(sequence))
        else:
            self._verify(sequence, scheduled.draft, logits[-1 - len(scheduled.draft) :], newest)

    def _embed(self, plan: StepPlan) -> None:
        """Pools the hidden states of the step for embedding requests, and ends those whose prompt is complete."""
        firsts = [0, *accumulate(scheduled.num_tokens + len(scheduled.draft) for scheduled in plan)]
        pooled = [(scheduled, first) for scheduled, first in zip(plan, firsts, strict=False) if scheduled.sequence.pool]
        if not pooled:
            return
        rows = np.concatenate([np.arange(first, first + scheduled.num_tokens) for scheduled, first in pooled])
        states = iter(self._runner.embed(rows.astype(np.int32)))
        for scheduled, _ in pooled:
            sequence, pool = scheduled.sequence, scheduled.sequence.pool
            assert pool
            pool.add(islice(states, scheduled.num_tokens), first=sequence.num_cached_tokens == 0)
            if scheduled.completes:
                timings = sequence.generation.timings
                self._finish(sequence, TokenOutput((), (), "stop", timings=timings, embedding=pool.vector()))

    def _draft(self, plan: StepPlan, batch: Batch) -> None:
        """Drafts one token with the model's MTP layer for each sequence that continues after the step."""
        tokens, output_rows, sequences = batch.tokens.copy(), [], []
        firsts = batch.lengths.cumsum() - batch.lengths
        for scheduled, first, start in zip(plan, firsts.tolist(), batch.starts.tolist(), strict=True):
            sequence, num_rows = scheduled.sequence, scheduled.num_tokens + len(scheduled.draft)
            following = sequence.tokens[start + 1 : start + 1 + num_rows]
            tokens[first : first + len(following)] = following
            if sequence.slot >= 0 and sequence.num_pending_tokens == 1:
                output_rows.append(first + len(following) - 1)
                sequences.append(sequence)
        for sequence, logits in zip(
            sequences, self._runner.draft(tokens, np.array(output_rows, np.int32)), strict=True
        ):
            sequence.mtp.predict(len(sequence.tokens), int(logits.argmax()))

    def _verify(self, sequence: Sequence, draft: abc.Sequence[int], logits: abc.Sequence[Floats], newest: int) -> None:
        """Adds one token to the answer of ``sequence``, and one more for each draft token that is accepted.

        ``logits`` has one row for the newest token of ``sequence`` and one for each token of ``draft``. They are rows
        of the step from ``newest`` on.
        """
        for row, (guess, scores) in enumerate(zip_longest(draft, logits), newest):
            if not self._add_token(sequence, scores, row) or sequence.tokens[-1] != guess:
                return
            sequence.num_cached_tokens += 1
            self.num_accepted_tokens += 1

    def _add_token(self, sequence: Sequence, logits: Floats, row: int) -> bool:
        """Samples one token from ``logits``, of ``row`` of the step, and adds it to the answer.

        Returns False if the answer has ended.
        """
        try:
            output = next_output(sequence, logits)
            if sequence.generation.watches:
                self._show(sequence, logits, row)
        except UserError as error:  # the requested grammar is too complex for the constraint
            self._finish(sequence, error)
            return False
        except BaseException as error:  # native code can raise exceptions that do not derive from Exception
            log.exception("request %s failed", sequence.generation.id)
            self._finish(sequence, EngineError(f"The answer cannot continue: {error}"))
            return False
        self.num_generated_tokens += 1
        if output.finish_reason:
            self._finish(sequence, output)
        else:
            sequence.generation.deliver(output)
        return not output.finish_reason

    def _show(self, sequence: Sequence, logits: Floats, row: int) -> None:
        """Tells those who watch ``sequence`` how its newest token was chosen from ``logits``."""
        generation, runner = sequence.generation, self._runner
        entry = logprobs(logits, sequence.tokens[-1], NUM_TOP)
        index, choice = generation.timings.num_generated - 1, (entry.token_id, entry.logprob or 0.0, entry.top)
        generation.watches.add(WatchedToken(index, *choice, runner.chosen_experts(row), runner.missed_experts()))


def suspects_of(plan: StepPlan, error: BaseException) -> list[Sequence]:
    """Returns the sequences of a step that caused ``error``: those that need unreadable weights, or else all."""
    if not isinstance(error, UnreadableWeights) or not error.rows:
        return [scheduled.sequence for scheduled in plan]
    ends = list(accumulate(scheduled.num_tokens + len(scheduled.draft) for scheduled in plan))
    owners = {bisect_right(ends, row) for row in error.rows}
    return [plan[index].sequence for index in sorted(owners)]
