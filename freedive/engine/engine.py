"""The engine: one thread that runs all sequences of a model, step by step.

Only the engine thread touches the runner, the scheduler and the pages. Others leave what they submit and cancel for it,
which it takes in before every step; without work it sleeps.

Whatever goes wrong in a step ends the requests of that step, and no more: scheduler, pages and prefix cache are made
anew, and all others are computed again from their tokens. Only a model that fails in every step is given up.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
from collections import abc
from collections.abc import Collection

from freedive.config import EngineConfig
from freedive.engine.chunk_sizer import STALL_S, ChunkSizer
from freedive.engine.context_limits import ContextLimits
from freedive.engine.detokenizer import Detokenizer, Tokenizer
from freedive.engine.executor import StepExecutor
from freedive.engine.generation import Delivery, EngineError, Generation, TokenOutput
from freedive.engine.kvcache import PageTables
from freedive.engine.page_store import PageStore
from freedive.engine.pooling import Pool, Pooling
from freedive.engine.prefix import PrefixCache
from freedive.engine.queue import is_full
from freedive.engine.repetition import RepetitionDetector
from freedive.engine.sampler import Sampler
from freedive.engine.sampling import Sampling
from freedive.engine.scheduler import Scheduler
from freedive.engine.scoring import PromptScores
from freedive.engine.sequence import Sequence, StepPlan
from freedive.engine.snapshots import Snapshots
from freedive.engine.speculation import DraftBudget
from freedive.engine.stats import EngineStats
from freedive.engine.submission import UNSCOPED, Job, Scope, Submission
from freedive.engine.watchdog import Watchdog
from freedive.errors import Overloaded, Unavailable
from freedive.model.batch import Runner
from freedive.text.prompt import Prompt

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Steps that fail one after the other before the model is given up."""

POLL_S = 0.1
"""How often it is looked again whether a step is possible, where none is because the disk has not answered."""


class Engine:
    """Runs many requests on one model at once. Safe to use from any thread. Close it, or use it in a ``with`` block.

    With a ``store``, which is closed with it, pages of prompts are kept on disk, if they are kept at all; with a
    ``state_store``, snapshots of per-sequence states likewise.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        config: EngineConfig,
        store: PageStore | None = None,
        state_store: PageStore | None = None,
    ) -> None:
        self._limits = ContextLimits.of(runner, config)
        self._config = config
        self._runner = runner
        self._tokenizer = tokenizer
        self._store = store
        self._state_store = state_store
        self._snapshots: Snapshots | None = None
        self._chunk_sizer = ChunkSizer(config.prefill_chunk, STALL_S)
        self._draft_budget = DraftBudget() if config.speculation == "auto" else None
        self._executor = StepExecutor(runner, self._chunk_sizer, self._draft_budget, self._finish)
        self._wake = threading.Condition()
        self._submitted: list[Submission] = []
        self._cancelled: list[Generation] = []
        self._submissions: dict[Submission, None] = {}
        self._open: dict[Generation, Submission] = {}
        self._closing = self._draining = self._is_blocked = self._is_poked = False
        self._failure = ""
        self._num_failures = 0
        self._watchdog = Watchdog(config.watchdog)
        self._num_requests = self._num_cached_tokens = self._num_restored_tokens = 0
        self._build()
        for each in self._stores:
            each.notify = self._poke
        self._thread = threading.Thread(target=self._run, name="freedive-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _build(self) -> None:
        """Make what keeps books of the pages."""
        config, runner = self._config, self._runner
        self._pages = PageTables(runner.num_pages, config.max_batch, self.max_context)
        if runner.states.shape[1]:
            self._snapshots = Snapshots(
                runner.states, config.max_batch, runner.page_bytes, runner.boundaries, self._state_store
            )
        self._prefixes = PrefixCache(self._pages, runner.boundaries, self._store, self._snapshots)
        prefixes = self._prefixes if config.prefix_cache else None
        self._scheduler = Scheduler(self._pages, config.max_batch, self._chunk_sizer, self._draft_budget, prefixes)

    @property
    def _stores(self) -> list[PageStore]:
        return [store for store in (self._store, self._state_store) if store]

    @property
    def max_context(self) -> int:
        """Most tokens that prompt and answer can have together."""
        return self._limits.max_context

    @property
    def failure(self) -> str:
        """Why the engine can do nothing any more, though nobody has closed it; else empty. It is to be made anew."""
        return self._failure

    @property
    def stalled_s(self) -> float:
        """Seconds without progress while something is under way, where the setting ``watchdog`` allows less; else 0."""
        return self._watchdog.stalled_s(bool(self._open) and not self._failure)

    def submit(
        self,
        prompt: Prompt | abc.Sequence[int],
        sampling: Sampling,
        *,
        scope: Scope = UNSCOPED,
        pooling: Pooling | None = None,
    ) -> Generation:
        """Queue ``prompt``, or just its token ids, on behalf of ``scope``.

        With ``pooling`` nothing is generated: the only piece has the prompt's ``embedding``. Raises UserError when it
        can never be run, Overloaded when too many wait already.
        """
        prompt = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
        return self.submit_all([Job(prompt, sampling, scope, pooling)])[0]

    def submit_all(self, jobs: abc.Sequence[Job]) -> list[Generation]:
        """Queue ``jobs``: all, as one entry of the queue, or none.

        Raises what :meth:`submit` raises.
        """
        if not jobs:
            return []
        max_lengths = [self._limits.max_length(job.prompt.tokens, job.sampling) for job in jobs]
        generations = [self._generation(job) for job in jobs]
        lengths = dict(zip(generations, max_lengths, strict=True))

        def make(generation: Generation, job: Job) -> Sequence:
            return self._sequence(generation, job, lengths[generation])

        submission = Submission(list(zip(generations, jobs, strict=True)), make, self._end)
        with self._wake:
            if self._failure:
                raise Unavailable(f"The engine has failed: {self._failure}", "Load the model again")
            if self._closing:
                raise Unavailable("The engine is closed", "Start it again")
            if is_full(self._submissions, jobs[0].scope.tenant, self._config.max_batch + self._config.max_queue):
                raise Overloaded(f"{len(self._submissions)} requests are under way already", "Try again later")
            if not self._open:
                self._watchdog.reset()
            self._submissions[submission] = None
            self._open.update(dict.fromkeys(generations, submission))
            self._num_requests += len(jobs)
            self._submitted.append(submission)
            self._wake.notify()
        return generations

    def _generation(self, job: Job) -> Generation:
        seed = int.from_bytes(os.urandom(6)) if job.sampling.seed is None else job.sampling.seed
        return Generation(f"gen-{os.urandom(12).hex()}", len(job.prompt.tokens), seed, self._post_cancel)

    def _sequence(self, generation: Generation, job: Job, max_length: int) -> Sequence:
        prompt, sampling, scope = job.prompt, job.sampling, job.scope
        return Sequence(
            generation=generation,
            sampling=sampling,
            sampler=Sampler(sampling, generation.seed, prompt.tokens, self._runner.vocab_size),
            detokenizer=Detokenizer(
                self._tokenizer.stream(continues=prompt.continues, is_visible=prompt.is_visible),
                sampling.stop,
                prompt.parser(),
            ),
            tokens=list(prompt.tokens),
            max_length=max_length,
            stop_ids=sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else self._tokenizer.stop_ids),
            constraint=prompt.constraint(sampling.max_tokens),
            pool=Pool(job.pooling) if job.pooling else None,
            scores=None if sampling.prompt_logprobs is None else PromptScores(prompt.tokens, sampling.prompt_logprobs),
            repetition=RepetitionDetector() if sampling.repetition_detection else None,
            cache_salt=f"{scope.tenant}/{scope.cache_salt}",
            user=scope.user,
            tenant=scope.tenant,
        )

    def close(self, *, drain: bool = False) -> None:
        """End the engine: what is under way is cancelled or, with ``drain``, finished first. May be called again.

        An engine that has stalled is not waited for.
        """
        with self._wake:
            self._closing, self._draining = True, drain
            self._wake.notify()
        while self._thread.is_alive() and not self.stalled_s:
            self._thread.join(POLL_S)
        for store in self._stores:
            store.close()
        atexit.unregister(self.close)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stats(self) -> EngineStats:
        """A snapshot for monitoring."""
        with self._wake:
            num_open, running = len(self._open), len(self._scheduler.running)
        done = self._executor
        return EngineStats(
            running=running,
            waiting=max(num_open - running, 0),
            free_pages=self._pages.num_free,
            known_pages=self._pages.num_registered,
            snapshots=len(self._snapshots) if self._snapshots else 0,
            num_pages=self._pages.num_pages,
            num_requests=self._num_requests,
            num_steps=done.num_steps,
            num_computed=done.num_computed_tokens,
            num_cached=self._num_cached_tokens + self._prefixes.num_cached_tokens,
            num_restored=self._num_restored_tokens + self._prefixes.num_restored_tokens,
            num_generated=done.num_generated_tokens,
            num_drafted=done.num_drafted_tokens,
            num_accepted=done.num_accepted_tokens,
        )

    def _post_cancel(self, generation: Generation) -> None:
        with self._wake:
            self._cancelled.append(generation)
            self._wake.notify()

    def _poke(self) -> None:
        """Look again whether a step is possible."""
        with self._wake:
            self._is_poked = True
            self._wake.notify()

    # From here on: the engine thread.

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # nobody watches this thread: as it ends, what is under way must end
            self._give_up(error)
        for generation in tuple(self._open):
            with contextlib.suppress(Exception):  # its pages are free now, but for an engine that was given up
                self._cancel(generation)
            self._end(generation, TokenOutput((), (), "cancelled", None, generation.timings))

    def _serve(self) -> None:
        while not self._failure:
            try:
                if not self._wait():
                    return
                self._take_in()
                self._step()
            except BaseException as error:  # native code raises other things than exceptions
                self._recover((), error)

    def _wait(self) -> bool:
        """Wait for work. False when the engine is to end."""
        with self._wake:
            if self._is_blocked and self._open:
                news = (self._submitted, self._cancelled)
                self._wake.wait_for(lambda: any(news) or self._is_poked or self._closing, POLL_S)
            else:
                self._wake.wait_for(lambda: self._open or self._closing)
            self._is_poked = False
            return not self._closing or (self._draining and bool(self._open))

    def _take_in(self) -> None:
        """Take note of what was submitted and cancelled."""
        with self._wake:
            submitted, self._submitted = self._submitted, []
            cancelled, self._cancelled = self._cancelled, []
        for submission in submitted:
            if sequence := submission.next():
                self._scheduler.add(sequence)
        for generation in cancelled:
            self._cancel(generation)

    def _step(self) -> None:
        plan: StepPlan | None = None
        try:
            plan = self._scheduler.plan()
            self._is_blocked = not plan
            if plan:
                self._executor.run(plan, self._pages)
                self._num_failures = 0
                self._watchdog.reset()
        except BaseException as error:
            suspects = self._scheduler.involved() if plan is None else [scheduled.sequence for scheduled in plan]
            self._recover(suspects, error)

    def _recover(self, suspects: Collection[Sequence], error: BaseException) -> None:
        """After ``error`` end the ``suspects`` with it, and compute all others anew; or give up."""
        log.error("a step with %d requests failed", len(suspects), exc_info=error)
        self._num_failures += 1
        if self._num_failures >= MAX_FAILURES:
            self._give_up(error)
            return
        ended = [sequence.generation for sequence in suspects if self._forget(sequence.generation)]
        try:
            self._rebuild()
        except BaseException as again:
            log.exception("the engine could not be made anew")
            self._give_up(again)
        for generation in ended:  # last, so that the pages are free by the time a reader knows
            generation.finish(EngineError(f"The engine failed while it computed this request: {error}"))

    def _rebuild(self) -> None:
        """Forget what the pages hold and queue all that is under way again, in the order of its arrival."""
        self._num_cached_tokens += self._prefixes.num_cached_tokens
        self._num_restored_tokens += self._prefixes.num_restored_tokens
        self._pages.retire()
        if self._snapshots:
            self._snapshots.retire()
        self._build()
        self._is_blocked = False
        with self._wake:
            submissions = [each for each in self._submissions if each not in self._submitted]
        for submission in submissions:
            for sequence in submission.sequences.values():
                if sequence.slot >= 0:
                    sequence.restart()
                self._scheduler.add(sequence)
            if not submission.is_queued and (following := submission.next()):
                self._scheduler.add(following)
        self._watchdog.reset()

    def _give_up(self, error: BaseException) -> None:
        """End all that is under way, and the engine."""
        why = f"{type(error).__name__}: {error}"
        log.critical("the engine has failed %d times in a row and is given up: %s", self._num_failures, why)
        with self._wake:
            self._failure = why
            generations = tuple(self._open)
        for generation in generations:
            self._end(generation, EngineError(f"The engine has failed: {why}"))

    def _cancel(self, generation: Generation) -> None:
        if not (submission := self._open.get(generation)):
            return
        if sequence := submission.sequences.get(generation):
            self._finish(sequence, TokenOutput(sequence.detokenizer.close(), (), "cancelled", None, generation.timings))
        else:
            submission.drop(generation)
            self._end(generation, TokenOutput((), (), "cancelled", None, generation.timings))

    def _finish(self, sequence: Sequence, last: Delivery) -> None:
        """End a request. Its pages are free by the time its reader knows."""
        self._scheduler.remove(sequence)
        self._end(sequence.generation, last)

    def _end(self, generation: Generation, last: Delivery) -> None:
        """Tell a reader that nothing more comes, unless it knows that."""
        if self._forget(generation):
            generation.finish(last)

    def _forget(self, generation: Generation) -> bool:
        """Strike out what is under way. False where it has ended already."""
        with self._wake:
            if not (submission := self._open.pop(generation, None)):
                return False
            submission.sequences.pop(generation, None)
            submission.num_open -= 1
            if not submission.num_open:
                del self._submissions[submission]
        return True
