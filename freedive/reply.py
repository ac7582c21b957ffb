"""The reply to one request: its text as a stream, and its complete text, tool calls, usage and timings."""

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
    """The answer to one request. The engine computes it from submission on, whether it is read or not.

    Iterate over the reply with ``for`` or ``async for`` to get its text in parts; ``events`` also has thoughts and
    tool calls. Leaving the iteration early cancels the rest. All other attributes wait for the end of the reply; in
    asynchronous code, call ``await reply.read()`` before. Several threads, or tasks of one event loop, can read a reply
    at the same time, each from its beginning.

    Reading raises EngineError if the engine fails, and UserError if the format of the answer cannot be enforced.
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
        """Yields thoughts, pieces of text and tool calls as they arrive."""
        with closing(self._read()) as outputs:
            yield from (event for output in outputs for event in output.events)

    async def read(self) -> Reply:
        """Waits for the end of the reply without blocking the event loop, and returns the reply."""
        async for _ in self:
            pass
        return self

    def cancel(self) -> None:
        """Stops the reply before its next token, with the ``finish_reason`` "cancelled"; no effect after the end."""
        self._generation.cancel()

    @property
    def text(self) -> str:
        """The text without thoughts and tool calls."""
        return self._answer.content

    @property
    def thoughts(self) -> str:
        """The model's thoughts before the answer."""
        return self._answer.reasoning

    @property
    def tool_calls(self) -> tuple[Call, ...]:
        """The tool calls in order."""
        return self._answer.calls

    @property
    def finish_reason(self) -> FinishReason | Literal["tool_calls"]:
        """Why the reply ended: stop, length, tool_calls, repetition or cancelled."""
        reason = self._whole[-1].finish_reason
        assert reason is not None
        return "tool_calls" if reason == "stop" and self.tool_calls else reason

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the reply, None if none did."""
        return self._whole[-1].stop_string

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens of the answer, including an end token."""
        return tuple(token for output in self._whole for token in output.token_ids)

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        """The log-probabilities of each token, empty if ``logprobs`` is not set."""
        return tuple(entry for output in self._whole for entry in output.logprobs or ())

    @property
    def usage(self) -> Usage:
        """Token counts of the request and its reply."""
        thought = sum(len(output.token_ids) for output in self._whole if output.is_thinking)
        generation = self._generation
        return Usage(generation.num_prompt_tokens, generation.num_cached_tokens, len(self.token_ids), thought)

    @property
    def timings(self) -> Timings:
        """The times of submission, first step, first token and end; None for those that are still to come."""
        return self._generation.timings

    @property
    def seed(self) -> int:
        """The seed of the sampler: the same request with this seed gets the same answer."""
        return self._generation.seed

    @property
    def _answer(self) -> Answer:
        return joined(event for output in self._whole for event in output.events)

    @property
    def _whole(self) -> list[TokenOutput]:
        """All outputs; waits for the end of the reply."""
        for _ in self._read():
            pass
        return self._outputs

    @property
    def _is_whole(self) -> bool:
        """Whether the reply was read to its end. Raises the error of an earlier read again."""
        if self._error:
            raise self._error
        return bool(self._outputs) and self._outputs[-1].finish_reason is not None

    def _read(self) -> Generator[TokenOutput, None, None]:
        """Yields all outputs, first those that were read before; cancels the rest if it is closed early."""
        place = 0
        try:
            while self._pull(place):
                yield self._outputs[place]
                place += 1
        finally:
            self.cancel()

    def _pull(self, place: int) -> bool:
        """Waits for the output at index ``place``, at most the next one; returns False at the end of the reply."""
        with self._turn:
            if place < len(self._outputs):
                return True
            if self._is_whole:
                return False
            self._arriving = self._arriving or iter(self._generation)
            try:
                self._outputs.append(next(self._arriving))
            except BaseException as error:
                self._arriving = None  # the reply is cancelled; a new iterator gets its last output
                self._note(error)
                raise
            return True

    async def _wait(self, place: int) -> bool:
        """Waits in an event loop for the output at index ``place``; returns False at the end of the reply."""
        import asyncio  # imported here because it takes long, and only asynchronous code needs it

        if self._loop is not asyncio.get_running_loop():  # locks and iterators belong to one loop
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
        """Stores the error that ended the reply."""
        if isinstance(error, EngineError | UserError):
            self._error = error
