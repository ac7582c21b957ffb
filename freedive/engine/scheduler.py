"""Who takes part in the next step, and with what.

Those of the tenant and its user who were served least come first, and each user's in order of arrival: the waiting to
run, and of the running those whose prompts are read. Whoever answers takes part in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import add

import numpy as np

from freedive.engine.batch import MAX_DRAFT, Batch, StateUpdates
from freedive.engine.guide import Guide
from freedive.engine.kvcache import PageTables, pages_for
from freedive.engine.pace import Pace
from freedive.engine.pooling import Pool
from freedive.engine.prefix import PrefixCache
from freedive.engine.queue import GENERATED_WEIGHT, FairQueue, most_placed
from freedive.engine.repetition import RepetitionDetector
from freedive.engine.request import Generation, Sampling
from freedive.engine.sampler import Sampler
from freedive.engine.scoring import MAX_SCORED_ROWS, PromptScores
from freedive.engine.snapshots import Save
from freedive.engine.speculation import Draft, Gate, Prediction, PromptLookup
from freedive.engine.stop import TextStream


@dataclass(slots=True, eq=False)
class Request:
    """A request inside the engine. ``tokens`` are prompt and answer so far, the first ``num_cached`` of them cached.

    It ends with one of ``stop_ids`` or, at the latest, with ``max_length`` tokens. ``row`` is its row of the page
    table, -1 while it waits. It shares pages with requests of the same ``salt`` only: the first ``num_known`` of its
    own can be found, by ``keys``. It takes a turn of its ``user``, who takes one of its ``tenant``. With a ``pool``
    nothing is generated. Its per-sequence state stands at ``state_end``: the tokens from there to ``num_cached`` were
    accepted drafts, or it is loaded already and their pages follow; copies of it have been ``saved``. When it starts or
    is removed, ``successor`` gives the request that is queued next of those that were submitted together.
    """

    generation: Generation
    sampling: Sampling
    sampler: Sampler
    text: TextStream
    tokens: list[int]
    max_length: int
    stop_ids: frozenset[int]
    guide: Guide | None = None
    pool: Pool | None = None
    scores: PromptScores | None = None
    repetition: RepetitionDetector | None = None
    salt: str = ""
    user: str = ""
    tenant: str = ""
    keys: list[bytes] = field(default_factory=list)
    lookup: PromptLookup = field(default_factory=PromptLookup)
    prediction: Prediction = field(default_factory=Prediction)
    num_cached: int = 0
    num_known: int = 0
    row: int = -1
    state_end: int = 0
    saved: list[Save] = field(default_factory=list)
    answer_key: bytes = b""
    successor: Callable[[], Request | None] | None = None

    @property
    def num_pending(self) -> int:
        """Tokens still to be computed: 1 when decoding."""
        return len(self.tokens) - self.num_cached

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
        return self.state_end > self.num_cached

    def rewind(self) -> None:
        """Compute all tokens anew, but for what is found again."""
        self.num_cached = self.num_known = self.state_end = 0

    def restart(self) -> None:
        """Back to the queue: prompt and answer so far have to be computed anew."""
        self.rewind()
        self.row, self.saved, self.answer_key = -1, [], b""
        self.generation.timings.num_preemptions += 1


@dataclass(frozen=True, slots=True)
class Share:
    """What a step computes of a request: ``count`` of its pending tokens, then those that ``draft`` guesses.

    ``saves`` are snapshots of its per-sequence state.
    """

    request: Request
    count: int
    draft: Sequence[int] = ()
    saves: Sequence[Save] = ()

    @property
    def tokens(self) -> list[int]:
        """Those of its rows."""
        start = self.request.num_cached
        return [*self.request.tokens[start : start + self.count], *self.draft]

    @property
    def wanted(self) -> range:
        """Those of its rows whose logits are wanted: all of a prompt that is scored; else after the newest token and

        every guess, if no token is pending afterwards.
        """
        num_rows = self.count + len(self.draft)
        if self.request.is_scored:
            return range(num_rows)
        return range(self.count - 1, num_rows) if self.completes and not self.request.pool else range(0)

    @property
    def completes(self) -> bool:
        """Whether no token is pending after the step, so that the next can be sampled."""
        return self.count == self.request.num_pending


Plan = list[Share]
"""A step: one share of each request that takes part."""


class Scheduler:
    """Shares out the steps and the pages. Each request must fit the whole cache.

    ``pace`` says how much of the prompts is read at once. Without a ``gate``, none guesses; without ``prefixes``, each
    computes all of its tokens.
    """

    def __init__(
        self,
        pages: PageTables,
        max_batch: int,
        pace: Pace,
        gate: Gate | None = None,
        prefixes: PrefixCache | None = None,
    ) -> None:
        self.pages = pages
        self.gate = gate
        self.prefixes = prefixes
        self.waiting: FairQueue[Request] = FairQueue()
        self.running: list[Request] = []
        self.pace = pace
        self._free_rows = list(range(max_batch))

    def add(self, request: Request) -> None:
        """Queue a new request behind all others of its user."""
        self.waiting.enter(request)

    def remove(self, request: Request) -> None:
        """Forget a request, wherever it stands, and free its pages."""
        if request.row < 0:
            self._take(request)
        else:
            self.running.remove(request)
            self._release(request)
        self.waiting.leave(request)

    def involved(self) -> list[Request]:
        """Whom :meth:`plan` looks at: the running, and whose turn it is to start."""
        return [*self.running, self.waiting.next()] if self.waiting else list(self.running)

    def plan(self) -> Plan:
        """The next step: one token of each decoding request, and prompts in order within the prefill budget.

        What is cached already is not computed. Where all are decoding, those guesses join that pay.
        """
        self._keep(*self.running)
        self._grow()
        self._make_way()
        self._admit()
        restoring = self.prefixes.restore(self.running) if self.prefixes else ()
        decoding = [Share(request, 1) for request in self.running if request.num_pending == 1]
        reading = [request for request in self.running if request.num_pending > 1 and request not in restoring]
        plan = decoding + self._chunks(reading, self.pace.chunk if decoding else self.pace.most)
        for share in plan:
            generated = (GENERATED_WEIGHT - 1) * share.completes  # by the last token, which is one of ``count``
            self.waiting.serve(share.request, share.count + generated)
        if plan and self.gate and is_decoding(plan):
            plan = self._with_drafts(plan, self.gate)
        return [self.prefixes.with_saves(share) for share in plan] if self.prefixes else plan

    def _chunks(self, reading: Sequence[Request], budget: int) -> Plan:
        """What is read of prompts, ``budget`` tokens in all."""
        plan: Plan = []
        scored = MAX_SCORED_ROWS
        for request in sorted(reading, key=self.waiting.served):
            if count := min(request.num_pending, budget, scored if request.is_scored else budget):
                plan.append(Share(request, count))
                budget -= count
                scored -= count * request.is_scored
        return plan

    def _with_drafts(self, plan: Plan, gate: Gate) -> Plan:
        """``plan`` with the guesses that pay, as far as pages are free for them."""
        most = min(MAX_DRAFT, self.pace.most // len(plan))
        drafts = [_draft(share.request, most) for share in plan]
        counts = gate.choose([draft.odds for draft in drafts])
        return [
            replace(share, draft=draft.tokens[:count])
            if count and self.pages.reserve(share.request.row, len(share.request.tokens) + count)
            else share
            for share, draft, count in zip(plan, drafts, counts, strict=True)
        ]

    def _grow(self) -> None:
        """Give every running request, oldest first, room for its newest token, at the expense of the youngest."""
        for request in tuple(self.running):
            while request.row >= 0 and not self.pages.reserve(request.row, len(request.tokens)):
                self._preempt(self.running[-1])

    def _make_way(self) -> None:
        """Where all places are taken, take one from those who have most for one who has none."""
        if self._free_rows or not self.waiting:
            return
        if request := most_placed(self.running, self.waiting.next()):
            self._preempt(request)

    def _preempt(self, request: Request) -> None:
        """Back to the queue; later its prompt and answer so far are computed anew, as far as they are not found."""
        self.running.remove(request)
        self._release(request)
        request.restart()
        self.waiting.back(request)

    def _admit(self) -> None:
        """Start waiting requests while there is room for all their tokens, and a page in hand for each one running."""
        while self.waiting and self._free_rows:
            request = self.waiting.next()
            num_held = self.prefixes.num_held(request) if self.prefixes else 0
            if pages_for(len(request.tokens)) - num_held + len(self.running) > self.pages.num_free:
                return
            request.row = self._free_rows.pop()
            if self.prefixes:
                self.prefixes.share(request)
            self.pages.reserve(request.row, len(request.tokens))
            self._take(request)
            self.running.append(request)

    def _take(self, request: Request) -> None:
        """Take ``request`` out of the queue, in which the next that was submitted with it goes to the end."""
        self.waiting.take(request)
        successor, request.successor = request.successor, None
        if successor and (following := successor()):
            self.add(following)

    def _release(self, request: Request) -> None:
        self._keep(request)
        self.pages.release(request.row)
        self._free_rows.append(request.row)

    def _keep(self, *requests: Request) -> None:
        if self.prefixes:
            for request in requests:
                self.prefixes.keep(request)


def is_decoding(plan: Plan) -> bool:
    """Whether each request has but one pending token: a step that memory limits, in which further rows are cheap."""
    return all(share.request.num_pending == 1 for share in plan)


def _draft(request: Request, most: int) -> Draft:
    """The guesses that promise most; so few that there is room for the token which is sampled after them."""
    most = max(min(most, request.max_length - len(request.tokens) - 1), 0)
    drafts = [drafter.draft(request.tokens, most) for drafter in (request.lookup, request.prediction)]
    return max(drafts, key=lambda draft: sum(draft.odds))


def to_batch(plan: Plan, pages: PageTables) -> Batch:
    """The data of a planned step."""
    tokens: list[int] = []
    wanted: list[int] = []
    for share in plan:
        wanted += [len(tokens) + row for row in share.wanted]
        tokens += share.tokens
    requests = [share.request for share in plan]
    starts = [request.num_cached for request in requests]
    lengths = [share.count + len(share.draft) for share in plan]
    ends = [share.request.num_cached + share.count for share in plan]
    rows = np.array([request.row for request in requests], np.int32)
    saves = [(index, *save) for index, share in enumerate(plan) for save in share.saves]
    most = pages_for(max(map(add, starts, lengths)))
    return Batch(
        tokens=np.array(tokens, np.int32),
        lengths=np.array(lengths, np.int32),
        starts=np.array(starts, np.int32),
        pages=pages.table[rows, :most],
        wanted=np.array(wanted, np.int32),
        prompts=np.array([request.generation.num_prompt_tokens for request in requests], np.int32),
        states=StateUpdates(
            slots=rows,
            begins=np.array([request.state_end for request in requests], np.int32),
            ends=np.array(ends, np.int32),
            saves=np.array(saves, np.int32).reshape(-1, 3),
        ),
    )
