"""One answer that is generated, stored and shown, whether somebody reads it or not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Literal

from fastapi.concurrency import run_in_threadpool

from freedive.errors import UserError
from freedive.json_object import Json
from freedive.server.answers.meter import running_meter, timings_of, usage_of
from freedive.server.answers.prompt import MAX_CALLS, Background
from freedive.server.answers.transcript import Transcript
from freedive.server.completion_stream import Completions
from freedive.server.conversations.messages import End
from freedive.server.conversations.records import Message, ToolCall
from freedive.server.conversations.store import ConversationStore
from freedive.server.page.rendering import FRAME_S, RENDER_SHARE
from freedive.server.stream import event
from freedive.text.dialects.dialect import Call
from freedive.text.dialects.parser import joined

logger = logging.getLogger(__name__)

WRITE_S = 0.5
"""Seconds between two writes of what arrived: the end of the process loses no more than that."""
MAX_NAME = 1000
"""Characters of the name of a tool that a model made up."""
WAIT_S = 0.5
"""Seconds between two updates of the meter while nothing arrives."""

Generate = Callable[[Message | None], Awaitable[Completions]]
"""Begins the first round of an answer (None), or the next one of what there is of it."""


class RunningAnswer:
    """The ``message`` of a conversation of ``owner`` in ``store`` while it is generated. Belongs to one event loop.

    An answer has one round more each time the model has called tools. It ends early, as ``asking``, if the user must be
    asked about a call.

    Three tasks share what has arrived: one receives it, one stores it twice a second, and one renders it if there are
    listeners. Listeners get what they lack whenever something was rendered, so a slow one gets fewer, larger updates.
    """

    def __init__(
        self, store: ConversationStore, owner: str, conversation: str, message: Message, background: Background
    ) -> None:
        self.message = message
        self.completions: Completions | None = None
        self.transcript = Transcript(message.reasoning, message.content, message.calls)
        self._background = background
        self._usage = message.usage
        self._store = store
        self._place = (owner, conversation, message.id)
        self._unwritten = (len(message.reasoning), len(message.content))
        self._receiving: asyncio.Task[None] | None = None
        self._ends_as: Literal["stopped", "interrupted"] | None = None
        self._hurries = False
        self._failure = ""
        self._finish = ""
        self._thought_s = 0.0
        self._over = asyncio.Event()
        self._arrived, self._news = asyncio.Event(), asyncio.Event()
        self._num_listeners = 0
        self._is_finished = False

    async def run(self, generate: Generate) -> None:
        """Runs the answer to its end, which is always stored."""
        self._receiving = asyncio.create_task(self._receive(generate))
        if self._ends_as:
            self._receiving.cancel()
        writing, rendering = asyncio.create_task(self._write()), asyncio.create_task(self._render())
        status, error = await self._outcome(self._receiving)
        self._over.set()
        self._arrived.set()
        faults = await asyncio.gather(writing, rendering, return_exceptions=True)
        for fault in filter(None, faults):
            logger.error("answer %s", self.message.id, exc_info=fault)
        if faults[0]:
            self._failure = "The server failed while it stored the answer. Try again"
        if status == "asking" and self._ends_as == "stopped":  # while the last of it was stored
            status = "stopped"
        await self._store_end("failed" if self._failure else status, self._failure or error)
        self._is_finished = True
        self._tell()

    def stop(self, ends_as: Literal["stopped", "interrupted"]) -> None:
        """Ends the answer, unless it has ended."""
        self._ends_as = ends_as
        if self._receiving:
            self._receiving.cancel()

    def answer_now(self) -> None:
        """Ends the thoughts of the answer; the text follows."""
        self._hurries = True
        if self.completions:
            self.completions.request = None  # running the request again would give another answer
            for generation in self.completions.generations:
                generation.end_thoughts()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yields the whole answer so far, then what arrives, then its end."""
        self._num_listeners += 1
        try:
            await self.transcript.render()
            seen, whole = self.transcript.snapshot()
            yield event({"snapshot": {**whole, "status": "running", "error": "", "meter": self.meter}})
            while True:
                news, is_last = self._news, self._is_finished
                shown, update = self.transcript.since(seen)
                if shown != seen or not is_last:
                    yield event({**update, "meter": self.meter})
                seen = shown
                if is_last:
                    break
                await news.wait()
            yield event(_end(self.message))
        finally:
            self._num_listeners -= 1

    async def submitted(self) -> Completions | None:
        """Returns the completions as soon as there are some; None if the answer ends before."""
        while not (self.completions or await self.has_ended(WAIT_S)):
            pass
        return None if self._over.is_set() else self.completions

    async def has_ended(self, seconds: float) -> bool:
        """Waits for the end, for so many seconds at most; returns whether all has arrived."""
        return await _has_passed(self._over, seconds)

    @property
    def meter(self) -> Json:
        """The numbers of the answer now."""
        return running_meter(self.completions, self._thought_s)

    async def _outcome(self, receiving: asyncio.Task[None]) -> tuple[End, str]:
        try:
            await receiving
        except asyncio.CancelledError:
            return self._ends_as or "interrupted", ""
        except UserError as error:
            return "failed", str(error)
        except Exception:
            logger.exception("answer %s failed", self.message.id)
            return "failed", "The server failed while it computed the answer. Try again"
        return "asking" if self._asks else "complete", ""

    @property
    def _asks(self) -> bool:
        return any(call["state"] == "asked" for call in self.transcript.calls)

    async def _receive(self, generate: Generate) -> None:
        calls = await self._receive_round(generate, None)
        while calls:
            self.transcript.calls += await self._called(calls)
            self._arrived.set()
            if self._asks:
                break
            self._usage, self.completions, self._finish = usage_of(self.completions, self._usage), None, ""
            calls = await self._receive_round(generate, self._so_far())

    def _so_far(self) -> Message:
        parts = {"content": self.transcript.text, "reasoning": self.transcript.thoughts, "calls": self.transcript.calls}
        return Message(**{**vars(self.message), **parts})

    async def _called(self, calls: Sequence[Call]) -> list[ToolCall]:
        """Stores the calls of a round, with the results of those that need not be asked about, and returns them."""
        before = self.transcript.calls
        new: list[ToolCall] = [
            {
                "id": f"call{len(before) + index:05}",
                "name": call.name[:MAX_NAME],
                "arguments": call.arguments,
                "state": "asked",
                "result": "",
                "round": before[-1]["round"] + 1 if before else 0,
                "text_end": len(self.transcript.text),
                "thoughts_end": len(self.transcript.thoughts),
            }
            for index, call in enumerate(calls[:MAX_CALLS])
        ]
        allowed = self._background.is_allowed
        done = [await run_in_threadpool(self._background.done, each) if allowed(each["name"]) else each for each in new]
        await run_in_threadpool(self._store.messages.add_calls, *self._place, done)
        return done

    async def _receive_round(self, generate: Generate, so_far: Message | None) -> list[Call]:
        """Receives what the model writes until it ends, and returns its calls."""
        starting = asyncio.ensure_future(generate(so_far))
        try:
            self.completions = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_cancel)  # a thread that submits the request cannot be stopped
            raise
        if self._hurries:
            self.answer_now()
        begun, thought_s, calls = None, self._thought_s, list[Call]()
        async with aclosing(self.completions.deltas()) as deltas:
            async for delta in deltas:
                part = joined(delta.events)
                self.transcript.add(part)
                begun = begun or time.perf_counter()
                if part.reasoning:
                    self._thought_s = thought_s + time.perf_counter() - begun
                calls += part.calls
                if delta.finish:
                    self._finish = "repetition" if delta.stop_reason == "repetition" else delta.finish
                self._arrived.set()
        return calls

    async def _write(self) -> None:
        while not await _has_passed(self._over, WRITE_S):
            await self._write_new()
        await self._write_new()

    async def _write_new(self) -> None:
        thoughts, text = self._unwritten
        new = {"reasoning": self.transcript.thoughts[thoughts:], "content": self.transcript.text[text:]}
        if not any(new.values()) or self._failure:
            return
        self._unwritten = (len(self.transcript.thoughts), len(self.transcript.text))
        try:
            await run_in_threadpool(self._store.messages.append, *self._place, **new)
        except UserError as error:  # the conversation was deleted, or the disk failed
            self._failure = str(error)
            self.stop("interrupted")

    async def _render(self) -> None:
        while not self._over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), WAIT_S)
            self._arrived.clear()
            before = time.perf_counter()
            if self._num_listeners:
                await self.transcript.render()
                self._tell()
            await _has_passed(self._over, max(FRAME_S, (time.perf_counter() - before) / RENDER_SHARE))
        if self._num_listeners:
            await self.transcript.render()

    def _tell(self) -> None:
        self._news, news = asyncio.Event(), self._news
        news.set()

    async def _store_end(self, status: End, error: str) -> None:
        owner, conversation, id = self._place
        usage, timings = usage_of(self.completions, self._usage), timings_of(self.completions, self._thought_s)
        more: dict[str, Any] = {"error": error, "finish": self._finish, "usage": usage, "timings": timings}
        finish = partial(self._store.messages.finish, owner, conversation, id, status, **more)
        try:
            self.message = await run_in_threadpool(finish)
        except UserError as failure:
            logger.warning("the end of answer %s was not stored: %s", id, failure)
            self.message = Message(**{**vars(self._so_far()), "status": status, **more})


def _end(message: Message) -> Json:
    return {"finished": message.finish, "status": message.status, "error": message.error, "message": vars(message)}


def _cancel(started: asyncio.Future[Completions]) -> None:
    """Cancels completions that nobody waits for any more."""
    if not started.cancelled() and not started.exception():
        for generation in started.result().generations:
            generation.cancel()


async def _has_passed(event: asyncio.Event, seconds: float) -> bool:
    """Waits until ``event`` is set, for so many seconds at most; returns whether it is."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()
