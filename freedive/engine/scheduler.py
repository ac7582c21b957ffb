"""Chooses which sequences run in the next step and how many tokens of each.

Waiting sequences and running prefills are ordered by fair queueing (see engine/queue.py): the least served tenant and
user first, each user's requests in order of arrival. Every decoding sequence takes part in every step.
"""

from __future__ import annotations

from collections import abc
from dataclasses import replace
from operator import add

import numpy as np

from freedive.arrays import Ints
from freedive.engine.chunk_sizer import ChunkSizer
from freedive.engine.kvcache import PageTables, pages_for
from freedive.engine.prefix import PrefixCache
from freedive.engine.queue import GENERATED_WEIGHT, FairQueue, preemption_victim
from freedive.engine.scoring import MAX_SCORED_ROWS
from freedive.engine.sequence import ScheduledSequence, Sequence, StepPlan
from freedive.engine.speculation import Draft, DraftBudget
from freedive.model.batch import MAX_DRAFT, Batch, StateUpdates


class Scheduler:
    """Schedules steps and allocates pages. Each sequence must be small enough to fit into the cache alone.

    ``chunk_sizer`` limits the prompt tokens of a step. Without a ``draft_budget`` there is no speculative decoding;
    without ``prefixes`` every token is computed.
    """

    def __init__(
        self,
        pages: PageTables,
        max_batch: int,
        chunk_sizer: ChunkSizer,
        draft_budget: DraftBudget | None = None,
        prefixes: PrefixCache | None = None,
    ) -> None:
        self.pages = pages
        self.draft_budget = draft_budget
        self.prefixes = prefixes
        self.waiting: FairQueue[Sequence] = FairQueue()
        self.running: list[Sequence] = []
        self.chunk_sizer = chunk_sizer
        self._free_slots = list(range(max_batch))

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence after the other sequences of its user."""
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Removes a waiting or running sequence and frees its pages."""
        if sequence.slot < 0:
            self._take(sequence)
        else:
            self.running.remove(sequence)
            self._release(sequence)
        self.waiting.finish(sequence)

    def involved(self) -> list[Sequence]:
        """Returns the sequences that :meth:`plan` reads: all running sequences and the next waiting one."""
        return [*self.running, self.waiting.next()] if self.waiting else list(self.running)

    def plan(self) -> StepPlan:
        """Returns the next step: one token of each decoding sequence, and prompt tokens within the prefill budget.

        Cached tokens are not computed. If all sequences of the step decode, it also verifies the draft tokens that
        increase the expected number of tokens per second.
        """
        self._publish(*self.running)
        self._grow()
        self._make_room()
        self._admit()
        reading = [sequence for sequence in self.running if sequence.num_pending_tokens > 1]
        restoring = self.prefixes.restore(reading) if self.prefixes else ()
        decoding = [ScheduledSequence(sequence, 1) for sequence in self.running if sequence.num_pending_tokens == 1]
        reading = [each for each in reading if each.num_pending_tokens > 1 and each not in restoring]
        plan = decoding + self._chunks(reading, self.chunk_sizer.chunk(bool(decoding)))
        for scheduled in plan:
            generated = (GENERATED_WEIGHT - 1) * scheduled.completes  # num_tokens already counts 1 for this row
            self.waiting.charge(scheduled.sequence, scheduled.num_tokens + generated)
        if plan and self.draft_budget and is_decoding(plan):
            plan = self._with_drafts(plan, self.draft_budget)
        return [self.prefixes.with_saves(scheduled) for scheduled in plan] if self.prefixes else plan

    def _chunks(self, reading: abc.Sequence[Sequence], budget: int) -> StepPlan:
        """Returns the prompt chunks of the step, at most ``budget`` tokens in all, the least served user first."""
        plan: StepPlan = []
        scored = MAX_SCORED_ROWS
        for sequence in sorted(reading, key=self.waiting.served):
            if count := min(sequence.num_pending_tokens, budget, scored if sequence.is_scored else budget):
                plan.append(ScheduledSequence(sequence, count))
                budget -= count
                scored -= count * sequence.is_scored
        return plan

    def _with_drafts(self, plan: StepPlan, draft_budget: DraftBudget) -> StepPlan:
        """Returns ``plan`` with the draft tokens that are worth verifying and for which pages are free."""
        most = min(MAX_DRAFT, self.chunk_sizer.max_chunk // len(plan))
        drafts = [_draft(scheduled.sequence, most) for scheduled in plan]
        counts = draft_budget.choose([draft.accept_probs for draft in drafts])
        return [
            replace(scheduled, draft=draft.tokens[:count])
            if count and self.pages.reserve(scheduled.sequence.slot, len(scheduled.sequence.tokens) + count)
            else scheduled
            for scheduled, draft, count in zip(plan, drafts, counts, strict=True)
        ]

    def _grow(self) -> None:
        """Reserves a page for the newest token of every running sequence, oldest first; preempts the newest sequences
        if pages are missing.
        """
        for sequence in tuple(self.running):
            while sequence.slot >= 0 and not self.pages.reserve(sequence.slot, len(sequence.tokens)):
                self._preempt(self.running[-1])

    def _make_room(self) -> None:
        """Preempts a sequence if no slot is free and the tenant or user of the next waiting sequence has none."""
        if self._free_slots or not self.waiting:
            return
        if sequence := preemption_victim(self.running, self.waiting.next()):
            self._preempt(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        """Returns a running sequence to the queue; later its tokens are computed again, except for cached pages."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.restart()
        self.waiting.requeue(sequence)

    def _admit(self) -> None:
        """Starts waiting sequences while pages are free for their tokens plus one page for each running sequence."""
        while self.waiting and self._free_slots:
            sequence = self.waiting.next()
            num_shared = self.prefixes.num_shared(sequence) if self.prefixes else 0
            if pages_for(len(sequence.tokens)) - num_shared + len(self.running) > self.pages.num_free:
                return
            sequence.slot = self._free_slots.pop()
            if self.prefixes:
                self.prefixes.attach(sequence)
            self.pages.reserve(sequence.slot, len(sequence.tokens))
            self._take(sequence)
            self.running.append(sequence)

    def _take(self, sequence: Sequence) -> None:
        """Removes ``sequence`` from the queue and adds the next sequence of the same submission at its end."""
        self.waiting.take(sequence)
        successor, sequence.successor = sequence.successor, None
        if successor and (following := successor()):
            self.add(following)

    def _release(self, sequence: Sequence) -> None:
        self._publish(sequence)
        self.pages.release(sequence.slot)
        self._free_slots.append(sequence.slot)

    def _publish(self, *sequences: Sequence) -> None:
        if self.prefixes:
            for sequence in sequences:
                self.prefixes.publish(sequence)


def is_decoding(plan: StepPlan) -> bool:
    """Returns whether each sequence has one pending token; memory bandwidth limits such a step, so rows are cheap."""
    return all(scheduled.sequence.num_pending_tokens == 1 for scheduled in plan)


def _draft(sequence: Sequence, most: int) -> Draft:
    """Returns the draft with the most expected accepted tokens; it leaves room for the token sampled after it."""
    most = max(min(most, sequence.max_length - len(sequence.tokens) - 1), 0)
    drafts = [drafter.draft(sequence.tokens, most) for drafter in (sequence.lookup, sequence.mtp)]
    return max(drafts, key=lambda draft: sum(draft.accept_probs))


def to_batch(plan: StepPlan, pages: PageTables, *, with_states: bool) -> Batch:
    """Returns the batch of a step plan; ``with_states`` for a model that has per-sequence states."""
    tokens: list[int] = []
    output_rows: list[int] = []
    for scheduled in plan:
        output_rows += [len(tokens) + row for row in scheduled.output_rows]
        tokens += scheduled.tokens
    sequences = [scheduled.sequence for scheduled in plan]
    numbers = (
        [scheduled.num_tokens + len(scheduled.draft) for scheduled in plan],
        [sequence.num_cached_tokens for sequence in sequences],
        [sequence.generation.num_prompt_tokens for sequence in sequences],
        [sequence.slot for sequence in sequences],
    )
    lengths, starts, prompts, slots = np.array(numbers, np.int32)
    return Batch(
        tokens=np.array(tokens, np.int32),
        lengths=lengths,
        starts=starts,
        pages=pages.table[slots, : pages_for(max(map(add, *numbers[:2])))],
        output_rows=np.array(output_rows, np.int32),
        prompts=prompts,
        states=_state_updates(plan, slots) if with_states else None,
    )


def _state_updates(plan: StepPlan, slots: Ints) -> StateUpdates:
    ends = [scheduled.sequence.num_cached_tokens + scheduled.num_tokens for scheduled in plan]
    saves = [(index, *save) for index, scheduled in enumerate(plan) for save in scheduled.saves]
    return StateUpdates(
        slots=slots,
        begins=np.array([scheduled.sequence.state_end for scheduled in plan], np.int32),
        ends=np.array(ends, np.int32),
        saves=np.array(saves, np.int32).reshape(-1, 3),
    )
