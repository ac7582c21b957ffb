"""The thread that turns requests into tokens.

Only the engine thread touches the runner, the scheduler and the pages. Others leave messages in ``_inbox``, which it
reads before every step; without work it sleeps.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from itertools import accumulate, islice, zip_longest
from typing import Protocol

import numpy as np

from freedive.config import EngineConfig
from freedive.engine.advance import empty_piece, next_piece
from freedive.engine.batch import Batch, Runner
from freedive.engine.guide import Guide
from freedive.engine.kvcache import PageTables
from freedive.engine.limits import Limits
from freedive.engine.pace import Pace
from freedive.engine.page_store import PageStore
from freedive.engine.pooling import Pool, Pooling
from freedive.engine.prefix import PrefixCache
from freedive.engine.queue import is_full
from freedive.engine.repetition import RepetitionDetector
from freedive.engine.request import EngineError, Generation, Piece, Sampling
from freedive.engine.sampler import Floats, Sampler
from freedive.engine.scheduler import Plan, Request, Scheduler, Share, is_decoding, to_batch
from freedive.engine.scoring import PromptScores
from freedive.engine.speculation import Gate
from freedive.engine.stats import EngineStats
from freedive.engine.stop import Decoder, Reader, TextStream
from freedive.errors import Overloaded, Unavailable

log = logging.getLogger(__name__)

STALL_S = 0.25
"""About how long a step may take while answers are under way: as long, they have to wait for their next token."""


class Tokenizer(Protocol):
    """What the engine needs to know about text."""

    @property
    def stop_ids(self) -> frozenset[int]: ...

    def stream(self, *, continues: bool = False, keep: Callable[[str], bool] | None = None) -> Decoder: ...


class Engine:
    """Runs many requests on one model at once. Safe to use from any thread. Close it, or use it in a ``with`` block.

    With a ``store``, which is closed with it, pages of prompts are kept on disk, if they are kept at all.
    """

    def __init__(
        self, runner: Runner, tokenizer: Tokenizer, config: EngineConfig, store: PageStore | None = None
    ) -> None:
        self._limits = Limits.of(runner, config)
        self._max_open = config.max_batch + config.max_queue
        self._runner = runner
        self._tokenizer = tokenizer
        self._pages = PageTables(runner.num_pages, config.max_batch, self.max_context)
        self._store = store
        self._prefixes = PrefixCache(self._pages, runner.boundaries, store)
        self._pace = Pace(config.prefill_chunk, STALL_S)
        self._gate = Gate() if config.speculation == "auto" else None
        self._scheduler = Scheduler(
            self._pages,
            config.max_batch,
            self._pace,
            self._gate,
            self._prefixes if config.prefix_cache == "on" else None,
        )
        self._wake = threading.Condition()
        self._inbox: list[Callable[[], None]] = []
        self._open: dict[Generation, Request] = {}
        self._closing = self._draining = False
        self._num_requests = self._num_steps = self._num_computed = self._num_generated = 0
        self._num_drafted = self._num_accepted = 0
        self._thread = threading.Thread(target=self._run, name="freedive-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def max_context(self) -> int:
        """Most tokens that prompt and answer can have together."""
        return self._limits.max_context

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        id: str | None = None,
        continues: bool = False,
        keep: Callable[[str], bool] | None = None,
        reader: Reader | None = None,
        guide: Guide | None = None,
        pooling: Pooling | None = None,
        salt: str = "",
        user: str = "",
        tenant: str = "",
    ) -> Generation:
        """Queue ``prompt`` (token ids). UserError when it can never be run, Overloaded when too many wait already.

        With ``continues`` the answer is read as the same text going on, so that a leading space stays. Special tokens
        have no text, save those that ``keep`` asks for. A ``reader`` tells thoughts and calls from text; without one,
        all is text. A ``guide`` gives the answer a form. Each answer has a reader and a guide of its own.
        With ``pooling`` nothing is generated: the only piece has the prompt's ``embedding``.

        What was computed for one ``salt`` is of no use for another, so that nobody learns by the time to the first
        token what others have asked. Each ``tenant`` gets an equal share of the steps, and of that each of its users.
        Salts and users stand below the tenant: two tenants share no cache, whatever they call theirs.
        """
        max_length = self._limits.max_length(prompt, sampling)
        seed = int.from_bytes(os.urandom(6)) if sampling.seed is None else sampling.seed
        request = Request(
            generation=Generation(id or f"gen-{os.urandom(12).hex()}", len(prompt), seed, self._post_cancel),
            sampling=sampling,
            sampler=Sampler(sampling, seed, prompt, self._runner.vocab_size),
            text=TextStream(self._tokenizer.stream(continues=continues, keep=keep), sampling.stop, reader),
            tokens=list(prompt),
            max_length=max_length,
            stop_ids=sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else self._tokenizer.stop_ids),
            guide=guide,
            pool=Pool(pooling) if pooling else None,
            scores=None if sampling.prompt_logprobs is None else PromptScores(prompt, sampling.prompt_logprobs),
            repetition=RepetitionDetector() if sampling.repetition_detection else None,
            salt=f"{tenant}/{salt}",
            user=user,
            tenant=tenant,
        )
        with self._wake:
            if self._closing:
                raise Unavailable("The engine is closed", "Start it again")
            if is_full(self._open.values(), tenant, self._max_open):
                raise Overloaded(f"{len(self._open)} requests are under way already", "Try again later")
            self._open[request.generation] = request
            self._num_requests += 1
            self._post(lambda: self._scheduler.add(request))
        return request.generation

    def close(self, *, drain: bool = False) -> None:
        """End the engine: what is under way is cancelled or, with ``drain``, finished first. May be called again."""
        with self._wake:
            self._closing, self._draining = True, drain
            self._wake.notify()
        self._thread.join()
        if self._store:
            self._store.close()
        atexit.unregister(self.close)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stats(self) -> EngineStats:
        """A snapshot for monitoring."""
        with self._wake:
            num_open, running = len(self._open), len(self._scheduler.running)
        return EngineStats(
            running=running,
            waiting=max(num_open - running, 0),
            free_pages=self._pages.num_free,
            known_pages=self._pages.num_known,
            num_pages=self._pages.num_pages,
            num_requests=self._num_requests,
            num_steps=self._num_steps,
            num_computed=self._num_computed,
            num_cached=self._prefixes.num_cached,
            num_restored=self._prefixes.num_restored,
            num_generated=self._num_generated,
            num_drafted=self._num_drafted,
            num_accepted=self._num_accepted,
        )

    def _post(self, action: Callable[[], None]) -> None:
        """Have ``action`` done by the engine thread before its next step."""
        with self._wake:
            self._inbox.append(action)
            self._wake.notify()

    def _post_cancel(self, generation: Generation) -> None:
        self._post(lambda: self._cancel(generation))

    # From here on: the engine thread.

    def _run(self) -> None:
        try:
            while self._receive():
                self._step()
            for generation in tuple(self._open):
                self._cancel(generation)
        except Exception:  # a fault of ours; nobody may be left waiting for it
            log.exception("the engine has crashed")
            with self._wake:
                self._closing = True
            for generation in self._open:
                generation.deliver(EngineError("The engine has crashed; its log says why"))

    def _receive(self) -> bool:
        """Wait for work and read the inbox. False when the engine is to end."""
        with self._wake:
            self._wake.wait_for(lambda: self._open or self._inbox or self._closing)
            inbox, self._inbox = self._inbox, []
            go_on = not self._closing or (self._draining and bool(self._open))
        for action in inbox:
            action()
        return go_on

    def _step(self) -> None:
        plan = self._scheduler.plan()
        if not plan:
            return
        start = time.perf_counter()
        for share in plan:
            timings = share.request.generation.timings
            timings.started_at = timings.started_at or start
        try:
            batch = to_batch(plan, self._pages)
            logits = self._runner.step(batch)
        except Exception as error:
            log.exception("a step with %d requests failed", len(plan))
            for share in plan:
                self._leave(share.request, EngineError(f"The model failed while it computed this request: {error}"))
            return
        decoding = is_decoding(plan)
        self._num_steps += 1
        self._num_computed += len(batch.tokens)
        self._embed(plan)
        rows = iter(logits)
        for share in plan:
            self._num_drafted += len(share.draft)
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
            self._num_accepted += 1

    def _add_token(self, request: Request, logits: Floats) -> bool:
        """Add one token to the answer of ``request``, whose ``logits`` these are. False when it is the last."""
        try:
            piece = next_piece(request, logits)
        except Exception as error:
            log.exception("request %s failed", request.generation.id)
            self._leave(request, EngineError(f"The answer cannot go on: {error}"))
            return False
        self._num_generated += 1
        if piece.finish_reason:
            self._leave(request, piece)
        else:
            request.generation.deliver(piece)
        return not piece.finish_reason

    def _cancel(self, generation: Generation) -> None:
        if request := self._open.get(generation):
            self._leave(request, Piece(request.text.close(), (), "cancelled", None, generation.timings))

    def _leave(self, request: Request, last: Piece | EngineError) -> None:
        """End a request. Its pages are free by the time its reader knows."""
        self._scheduler.remove(request)
        with self._wake:
            del self._open[request.generation]
        request.generation.timings.finished_at = time.perf_counter()
        request.generation.deliver(last)
