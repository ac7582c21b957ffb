"""One step: the native call, and what each request makes of its result: tokens, embeddings, guesses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from itertools import accumulate, islice, zip_longest

import numpy as np

from freedive.engine.advance import empty_piece, next_piece
from freedive.engine.batch import Batch, Runner
from freedive.engine.kvcache import PageTables
from freedive.engine.pace import Pace
from freedive.engine.request import Delivery, EngineError, Piece
from freedive.engine.sampler import Floats
from freedive.engine.scheduler import Plan, Request, Share, is_decoding, to_batch
from freedive.engine.speculation import Gate
from freedive.errors import UserError

log = logging.getLogger(__name__)


class StepExecutor:
    """Carries out planned steps on ``runner`` and counts what was done: see :class:`freedive.engine.stats.EngineStats`.

    ``pace`` and ``gate`` learn how long steps take. ``leave`` ends a request with its last piece or an error.
    """

    def __init__(
        self, runner: Runner, pace: Pace, gate: Gate | None, leave: Callable[[Request, Delivery], None]
    ) -> None:
        self.num_steps = self.num_computed = self.num_generated = self.num_drafted = self.num_accepted = 0
        self._runner = runner
        self._pace = pace
        self._gate = gate
        self._leave = leave

    def run(self, plan: Plan, pages: PageTables) -> None:
        """Compute the step ``plan``, and hand out what it makes."""
        start = time.perf_counter()
        for share in plan:
            timings = share.request.generation.timings
            timings.started_at = timings.started_at or start
        batch = to_batch(plan, pages)
        logits = self._runner.step(batch)
        decoding = is_decoding(plan)
        self.num_steps += 1
        self.num_computed += len(batch.tokens)
        self._embed(plan)
        rows = iter(logits)
        for share in plan:
            self.num_drafted += len(share.draft)
            self._take(share, list(islice(rows, len(share.wanted))))
        if self._gate and self._runner.drafts:
            self._predict(plan, batch)
        seconds = time.perf_counter() - start
        if self._gate and decoding:
            self._gate.record(len(batch.tokens), seconds)
        if not decoding:
            self._pace.record(len(batch.tokens), seconds)

    def _take(self, share: Share, logits: Sequence[Floats]) -> None:
        """After a step, take note of what it computed for ``share``, whose wanted ``logits`` these are."""
        request = share.request
        if request.scores:
            request.scores.add(request.num_cached, logits)
        request.num_cached += share.count
        request.state_end = request.num_cached
        request.saved.extend(share.saves)
        if request.num_pending or request.pool:
            return
        if len(request.tokens) == request.max_length:
            self._leave(request, empty_piece(request))
        else:
            self._advance(request, share.draft, logits[-1 - len(share.draft) :])

    def _embed(self, plan: Plan) -> None:
        """After a step, pool what it made of the tokens of requests that want that; end those that are complete."""
        firsts = [0, *accumulate(share.count + len(share.draft) for share in plan)]
        pooled = [(share, first) for share, first in zip(plan, firsts, strict=False) if share.request.pool]
        if not pooled:
            return
        rows = np.concatenate([np.arange(first, first + share.count) for share, first in pooled])
        states = iter(self._runner.embed(rows.astype(np.int32)))
        for share, _ in pooled:
            request, pool = share.request, share.request.pool
            assert pool
            pool.add(islice(states, share.count), first=request.num_cached == 0)
            if share.completes:
                timings = request.generation.timings
                self._leave(request, Piece((), (), "stop", timings=timings, embedding=pool.vector()))

    def _predict(self, plan: Plan, batch: Batch) -> None:
        """After a step, have the model predict one token beyond the newest of each request that goes on."""
        tokens, wanted, asking = batch.tokens.copy(), [], []
        firsts = batch.lengths.cumsum() - batch.lengths
        for share, first, start in zip(plan, firsts.tolist(), batch.starts.tolist(), strict=True):
            request, num_rows = share.request, share.count + len(share.draft)
            following = request.tokens[start + 1 : start + 1 + num_rows]
            tokens[first : first + len(following)] = following
            if request.row >= 0 and request.num_pending == 1:
                wanted.append(first + len(following) - 1)
                asking.append(request)
        for request, logits in zip(asking, self._runner.draft(tokens, np.array(wanted, np.int32)), strict=True):
            request.prediction.predict(len(request.tokens), int(logits.argmax()))

    def _advance(self, request: Request, draft: Sequence[int], logits: Sequence[Floats]) -> None:
        """Add one token to the answer of ``request``, and another for each guess that proves right.

        ``logits`` are those after the newest token and after every guess.
        """
        for guess, row in zip_longest(draft, logits):
            if not self._add_token(request, row) or request.tokens[-1] != guess:
                return
            request.num_cached += 1
            self.num_accepted += 1

    def _add_token(self, request: Request, logits: Floats) -> bool:
        """Add one token to the answer of ``request``, whose ``logits`` these are. False when it is the last."""
        try:
            piece = next_piece(request, logits)
        except UserError as error:  # the form that was asked for proves too hard
            self._leave(request, error)
            return False
        except BaseException as error:  # native code raises other things than exceptions
            log.exception("request %s failed", request.generation.id)
            self._leave(request, EngineError(f"The answer cannot go on: {error}"))
            return False
        self.num_generated += 1
        if piece.finish_reason:
            self._leave(request, piece)
        else:
            request.generation.deliver(piece)
        return not piece.finish_reason
