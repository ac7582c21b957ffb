"""The engine: one thread that runs all sequences of a model, step by step.

Only the engine thread uses the runner, the scheduler and the page tables. Other threads append submissions and
cancellations to lists, which the engine thread reads before every step. Without work the engine thread sleeps.

An exception in a step ends only the requests of that step, and weights that cannot be read end only those that need
them. The engine then rebuilds the scheduler, the page tables and the prefix cache, and computes all other requests
again from their tokens. It fails for good after ``MAX_FAILURES`` failed steps in a row. Steps that cannot read weights
from disk do not count, since a new engine could not either. If the file has changed, a new engine may: then so many of
them are the end, in a row or not.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
from collections import abc
from collections.abc import Callable, Collection
from functools import partial

from freedive.config import EngineConfig
from freedive.engine.chunk_sizer import PAGED_STALL_S, STALL_S, ChunkSizer
from freedive.engine.context_limits import ContextLimits
from freedive.engine.detokenizer import Detokenizer, Tokenizer
from freedive.engine.executor import StepExecutor, suspects_of
from freedive.engine.generation import Delivery, Generation, TokenOutput, last_delivery
from freedive.engine.kvcache import PageTables
from freedive.engine.page_store import PageStore
from freedive.engine.pooling import Pool, Pooling
from freedive.engine.prefix import PrefixCache
from freedive.engine.queue import is_full, num_before
from freedive.engine.repetition import RepetitionDetector
from freedive.engine.sampler import Sampler
from freedive.engine.sampling import Sampling
from freedive.engine.scheduler import Scheduler
from freedive.engine.scoring import PromptLogprobs
from freedive.engine.sequence import Sequence, StepPlan
from freedive.engine.snapshots import Snapshots
from freedive.engine.speculation import DraftBudget
from freedive.engine.stats import EngineStats
from freedive.engine.submission import UNSCOPED, Job, Scope, Submission
from freedive.engine.watchdog import Watchdog
from freedive.errors import Overloaded, Unavailable
from freedive.model.batch import ChangedWeights, Runner
from freedive.text.prompt import Prompt

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Number of failed steps in a row after which the engine fails for good."""

POLL_S = 0.1
"""Seconds after which the engine plans again while all sequences wait for the disk, and between checks in close()."""


class Engine:
    """Runs many requests on one model at once. Safe to use from any thread. Close it, or use it in a ``with`` block.

    With a ``store`` and the setting ``prefix_cache``, the engine writes the pages of prompts to disk. With a
    ``state_store`` it also writes snapshots of per-sequence states. :meth:`close` closes both stores.
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
        self._config, self._runner, self._tokenizer = config, runner, tokenizer
        self._store = store
        self._state_store = state_store
        self._snapshots: Snapshots | None = None
        self._chunk_sizer = ChunkSizer(config.prefill_chunk, PAGED_STALL_S if runner.pages_experts else STALL_S)
        self._draft_budget = DraftBudget() if config.speculation == "auto" else None
        self._executor = StepExecutor(runner, self._chunk_sizer, self._draft_budget, self._finish)
        self._wake = threading.Condition()
        self._submitted: list[Submission] = []
        self._wishes: list[tuple[Callable[[Generation], None], Generation]] = []
        self._submissions: dict[Submission, None] = {}
        self._open: dict[Generation, Submission] = {}
        self._closing = self._draining = self._is_blocked = self._is_poked = False
        self._failure = ""
        self._num_failures = self._num_changed = 0
        self._watchdog = Watchdog(config.watchdog)
        self._acts = partial(self._post, self._cancel), partial(self._post, self._end_thoughts)
        self._num_requests = self._num_cached_tokens = self._num_restored_tokens = 0
        self._build()
        for each in self._stores:
            each.notify = self._poke
        self._thread = threading.Thread(target=self._run, name="freedive-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _build(self) -> None:
        """Creates page tables, snapshots, prefix cache and scheduler, all empty."""
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
        """Maximum number of tokens of prompt and answer together."""
        return self._limits.max_context

    @property
    def failure(self) -> str:
        """Why the engine has failed for good and must be replaced by a new one; empty if it has not failed."""
        return self._failure

    @property
    def stalled_s(self) -> float:
        """Seconds without progress while requests are open, if they exceed the setting ``watchdog``; else 0."""
        return self._watchdog.stalled_s(bool(self._open) and not self._failure)

    def submit(
        self,
        prompt: Prompt | abc.Sequence[int],
        sampling: Sampling,
        *,
        scope: Scope = UNSCOPED,
        pooling: Pooling | None = None,
    ) -> Generation:
        """Queues ``prompt``, a Prompt or token ids, on behalf of ``scope`` and returns its generation.

        With ``pooling`` the engine generates no tokens: the only output has the prompt's ``embedding``. Raises
        UserError if the request exceeds a limit of the model, Overloaded if the queue is full, and Unavailable if the
        engine is closed or has failed.
        """
        prompt = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
        return self.submit_all([Job(prompt, sampling, scope, pooling)])[0]

    def submit_all(self, jobs: abc.Sequence[Job]) -> list[Generation]:
        """Queues all ``jobs`` as one entry of the queue, or none of them if one is refused.

        Raises the same errors as :meth:`submit`.
        """
        if not jobs:
            return []
        max_lengths = [self._limits.max_length(job.prompt.tokens, job.sampling) for job in jobs]
        generations = [self._generation(job) for job in jobs]
        make = partial(self._sequence, dict(zip(generations, max_lengths, strict=True)))
        submission = Submission(list(zip(generations, jobs, strict=True)), make, self._end)
        with self._wake:
            if self._failure:
                raise Unavailable(f"The engine has failed: {self._failure}", "Load the model again")
            if self._closing:
                raise Unavailable("The engine is closed", "Start it again")
            if is_full(self._submissions, jobs[0].scope.tenant, self._config.max_batch + self._config.max_queue):
                raise Overloaded(f"{len(self._submissions)} requests are open already", "Try again later")
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
        return Generation(f"gen-{os.urandom(12).hex()}", len(job.prompt.tokens), seed, *self._acts)

    def _sequence(self, max_lengths: abc.Mapping[Generation, int], generation: Generation, job: Job) -> Sequence:
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
            max_length=max_lengths[generation],
            stop_ids=sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else self._tokenizer.stop_ids),
            constraint=prompt.constraint(sampling.max_tokens),
            budget=prompt.budget,
            pool=Pool(job.pooling) if job.pooling else None,
            scores=None
            if sampling.prompt_logprobs is None
            else PromptLogprobs(prompt.tokens, sampling.prompt_logprobs),
            repetition=RepetitionDetector() if sampling.repetition_detection else None,
            cache_salt=f"{scope.tenant}/{scope.cache_salt}",
            user=scope.user,
            tenant=scope.tenant,
        )

    def close(self, *, drain: bool = False) -> None:
        """Ends the engine; cancels open requests or, with ``drain``, finishes them first. May be called again.

        It does not wait for an engine that has stalled.
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
        """Returns the current counters of the engine, for monitoring."""
        with self._wake:
            num_open, running = len(self._open), len(self._scheduler.running)
        return EngineStats(
            running=running,
            waiting=max(num_open - running, 0),
            free_pages=self._pages.num_free,
            known_pages=self._pages.num_registered,
            snapshots=len(self._snapshots) if self._snapshots else 0,
            num_pages=self._pages.num_pages,
            num_requests=self._num_requests,
            num_steps=self._executor.num_steps,
            num_computed=self._executor.num_computed_tokens,
            num_read=self._executor.num_read_tokens,
            num_cached=self._num_cached_tokens + self._prefixes.num_cached_tokens,
            num_restored=self._num_restored_tokens + self._prefixes.num_restored_tokens,
            num_generated=self._executor.num_generated_tokens,
            num_drafted=self._executor.num_drafted_tokens,
            num_accepted=self._executor.num_accepted_tokens,
        )

    def place(self, generation: Generation) -> int:
        """Returns how many requests came before ``generation`` and wait like it, though later ones may start first."""
        with self._wake:
            return num_before(self._open, generation)

    def _post(self, act: Callable[[Generation], None], generation: Generation) -> None:
        with self._wake:
            self._wishes.append((act, generation))
            self._wake.notify()

    def _poke(self) -> None:
        """Wakes the engine thread, which plans again. A store calls it when it has read a page from disk."""
        with self._wake:
            self._is_poked = True
            self._wake.notify()

    # All methods from here on run in the engine thread.

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # when this thread ends, every open request must end, or its consumer waits
            self._give_up(error)
        for generation in tuple(self._open):
            with contextlib.suppress(Exception):  # frees its pages; raises only if the scheduler is inconsistent
                self._cancel(generation)
            self._end(generation, TokenOutput((), (), "cancelled", None, generation.timings))

    def _serve(self) -> None:
        while not self._failure:
            try:
                if not self._wait():
                    return
                self._take_in()
                self._step()
            except BaseException as error:  # native code can raise exceptions that do not derive from Exception
                self._recover((), error)

    def _wait(self) -> bool:
        """Waits for work. Returns False when the engine must end."""
        with self._wake:
            if self._is_blocked and self._open:
                news = (self._submitted, self._wishes)
                self._wake.wait_for(lambda: any(news) or self._is_poked or self._closing, POLL_S)
            else:
                self._wake.wait_for(lambda: self._open or self._closing)
            self._is_poked = False
            return not self._closing or (self._draining and bool(self._open))

    def _take_in(self) -> None:
        """Adds submitted requests to the scheduler; cancels requests, and ends thoughts, whose callers asked for it."""
        with self._wake:
            submitted, self._submitted = self._submitted, []
            wishes, self._wishes = self._wishes, []
        for submission in submitted:
            if sequence := submission.next():
                self._scheduler.add(sequence)
        for act, generation in wishes:
            act(generation)

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
            suspects = self._scheduler.involved() if plan is None else suspects_of(plan, error)
            self._recover(suspects, error)

    def _recover(self, suspects: Collection[Sequence], error: BaseException) -> None:
        """Ends the ``suspects`` with ``error`` and restarts all other requests; gives up after too many failures."""
        unreadable, changed = isinstance(error, Unavailable), isinstance(error, ChangedWeights)
        log.error("a step with %d requests failed: %s", len(suspects), error, exc_info=None if unreadable else error)
        self._num_failures += not unreadable
        self._num_changed += changed
        if max(self._num_failures, self._num_changed) >= MAX_FAILURES:
            self._give_up(error)
            return
        ended = [sequence.generation for sequence in suspects if self._forget(sequence.generation)]
        try:
            self._rebuild()
        except BaseException as again:
            log.exception("the engine could not be made anew")
            self._give_up(again)
        for generation in ended:  # last, so that the pages are free when the consumer receives the error
            generation.finish(last_delivery(error, f"The engine failed while it computed this request: {error}"))

    def _rebuild(self) -> None:
        """Drops the contents of all pages and queues all open requests again, in order of arrival."""
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
        """Ends all open requests with an EngineError, and then the engine."""
        why = f"{type(error).__name__}: {error}"
        log.critical("the engine is given up: %s", why)
        with self._wake:
            self._failure = why
            generations = tuple(self._open)
        for generation in generations:
            self._end(generation, last_delivery(error, f"The engine has failed: {why}"))

    def _cancel(self, generation: Generation) -> None:
        if not (submission := self._open.get(generation)):
            return
        if sequence := submission.sequences.get(generation):
            self._finish(sequence, TokenOutput(sequence.detokenizer.close(), (), "cancelled", None, generation.timings))
        else:
            submission.drop(generation)
            self._end(generation, TokenOutput((), (), "cancelled", None, generation.timings))

    def _end_thoughts(self, generation: Generation) -> None:
        if (submission := self._open.get(generation)) and (sequence := submission.sequences.get(generation)):
            sequence.end_thoughts()

    def _finish(self, sequence: Sequence, last: Delivery) -> None:
        """Ends a request. Its pages are free when its consumer receives ``last``."""
        self._scheduler.remove(sequence)
        self._end(sequence.generation, last)

    def _end(self, generation: Generation, last: Delivery) -> None:
        """Delivers the ``last`` item of ``generation``, unless the generation has already ended."""
        if self._forget(generation):
            generation.finish(last)

    def _forget(self, generation: Generation) -> bool:
        """Removes ``generation`` from the open requests. Returns False if it has already ended."""
        with self._wake:
            if not (submission := self._open.pop(generation, None)):
                return False
            submission.sequences.pop(generation, None)
            submission.num_open -= 1
            if not submission.num_open:
                del self._submissions[submission]
        return True
