"""The reply to one request: text as it comes, and what is known of it in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import closing
from threading import Lock
from typing import TYPE_CHECKING, Literal

from freedive.engine.generation import EngineError, FinishReason, Generation, Timings, TokenLogprobs, TokenOutput, Usage
from freedive.errors import UserError
from freedive.text.dialects.dialect import Call, Event
from freedive.text.dialects.parser import Answer, joined

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


class Reply:
    """What a model answers to one request, which is computed from its submission on, read or not.

    Iterate over it, with ``for`` or ``async for``, for the pieces of its text as they come; ``events`` has thoughts and
    calls among them. Leaving the iteration early cancels the rest. Everything else reads the reply to its end first:
    in asynchronous code, ``await reply.read()`` before. What was read is kept, so that a reply can be read again, by
    several threads, or tasks of one event loop, at once.

    Reading raises EngineError when the engine fails, UserError where what was asked for proves to be impossible.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._outputs: list[TokenOutput] = []
        self._arriving: Iterator[TokenOutput] | None = None
        self._turn = Lock()
        self._loop: AbstractEventLoop | None = None
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[str]:
        with closing(self._read()) as outputs:
            yield from (output.text for output in outputs if output.text)

    async def __aiter__(self) -> AsyncIterator[str]:
        place = 0
        try:
            while await self._wait(place):
                if text := self._outputs[place].text:
                    yield text
                place += 1
        finally:
            self.cancel()

    def events(self) -> Iterator[Event]:
        """Thoughts, pieces of text and calls, as they come."""
        with closing(self._read()) as outputs:
            yield from (event for output in outputs for event in output.events)

    async def read(self) -> Reply:
        """Wait for the end, without holding up an event loop; returns the reply."""
        async for _ in self:
            pass
        return self

    def cancel(self) -> None:
        """End it before its next token; its ``finish_reason`` is ``cancelled``. Does nothing after the end."""
        self._generation.cancel()

    @property
    def text(self) -> str:
        """The text, without thoughts and calls."""
        return self._answer.content

    @property
    def thoughts(self) -> str:
        """What the model thought before it answered."""
        return self._answer.reasoning

    @property
    def tool_calls(self) -> tuple[Call, ...]:
        """The calls of tools, in their order."""
        return self._answer.calls

    @property
    def finish_reason(self) -> FinishReason | Literal["tool_calls"]:
        """What ended it: stop, length, tool_calls, repetition or cancelled."""
        reason = self._whole[-1].finish_reason
        assert reason is not None
        return "tool_calls" if reason == "stop" and self.tool_calls else reason

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it, if one did."""
        return self._whole[-1].stop_string

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens of the answer, an end token included."""
        return tuple(token for output in self._whole for token in output.token_ids)

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        """Of each token, where ``logprobs`` were asked for."""
        return tuple(entry for output in self._whole for entry in output.logprobs or ())

    @property
    def usage(self) -> Usage:
        """Counts of tokens."""
        thought = sum(len(output.token_ids) for output in self._whole if output.is_thinking)
        generation = self._generation
        return Usage(generation.num_prompt_tokens, generation.num_cached_tokens, len(self.token_ids), thought)

    @property
    def timings(self) -> Timings:
        """When it began, had its first token, and ended, so far."""
        return self._generation.timings

    @property
    def seed(self) -> int:
        """What it was sampled with: the same request with this seed has the same answer."""
        return self._generation.seed

    @property
    def _answer(self) -> Answer:
        return joined(event for output in self._whole for event in output.events)

    @property
    def _whole(self) -> list[TokenOutput]:
        """All output, for which it waits."""
        for _ in self._read():
            pass
        return self._outputs

    @property
    def _is_whole(self) -> bool:
        """Whether all has been read. Raises again what reading raised."""
        if self._error:
            raise self._error
        return bool(self._outputs) and self._outputs[-1].finish_reason is not None

    def _read(self) -> Generator[TokenOutput, None, None]:
        """What has been read, then what comes; left early, the rest is cancelled."""
        place = 0
        try:
            while self._pull(place):
                yield self._outputs[place]
                place += 1
        finally:
            self.cancel()

    def _pull(self, place: int) -> bool:
        """Wait for the piece at ``place``, the next at most. False when there is none."""
        with self._turn:
            if place < len(self._outputs):
                return True
            if self._is_whole:
                return False
            self._arriving = self._arriving or iter(self._generation)
            try:
                self._outputs.append(next(self._arriving))
            except BaseException as error:
                self._arriving = None  # what was interrupted is cancelled, and its last piece comes to another iterator
                self._note(error)
                raise
            return True

    async def _wait(self, place: int) -> bool:
        """As :meth:`_pull`, in an event loop."""
        import asyncio  # imported here because it takes long, and only asynchronous code needs it

        if self._loop is not asyncio.get_running_loop():  # what belongs to a loop ends with it
            self._loop = asyncio.get_running_loop()
            self._turn_async = asyncio.Lock()
            self._arriving_async: AsyncIterator[TokenOutput] | None = None
        async with self._turn_async:
            if place < len(self._outputs):
                return True
            if self._is_whole:
                return False
            self._arriving_async = self._arriving_async or aiter(self._generation)
            try:
                self._outputs.append(await anext(self._arriving_async))
            except BaseException as error:
                self._arriving_async = None
                self._note(error)
                raise
            return True

    def _note(self, error: BaseException) -> None:
        """Remember what ended the reply."""
        if isinstance(error, EngineError | UserError):
            self._error = error
