"""All answers to conversations that run now: started, continued, read, and ended with the server."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from freedive.errors import NotFound, Overloaded
from freedive.json_object import Json
from freedive.server.answers.expert_map import expert_events
from freedive.server.answers.meter import stored_meter
from freedive.server.answers.prompt import chat_request
from freedive.server.answers.running import RunningAnswer
from freedive.server.auth import Auth
from freedive.server.completion_stream import Completions
from freedive.server.conversations.chats import Chats
from freedive.server.conversations.records import Message, MessageDraft, Tree
from freedive.server.openai.fields import ChatRequest
from freedive.server.page.rendered import Rendered
from freedive.server.request_record import Observer, RequestRecord
from freedive.server.service import Service
from freedive.server.stream import event

ROUTE = "/app/conversations/{id}/answers/{message}"
"""The route under which observers are told of an answer."""
MAX_RUNNING = 64
"""The most answers of one key that run or wait at the same time."""


class Answers:
    """The running answers of ``chats``, each a task of its own, which ends with the answer or the server.

    An answer counts against the limits of its key as any request does, and ``observers`` get a record of it at its end.
    """

    def __init__(self, chats: Chats, service: Service, auth: Auth, observers: Sequence[Observer]) -> None:
        self.rendered = Rendered()
        self._chats, self._service, self._auth, self._observers = chats, service, auth, observers
        self._running: dict[tuple[str, str, str], RunningAnswer] = {}
        self._num_running: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, request: Request, id: str, parent: str, model: str) -> Message:
        """Begins another answer to the message ``parent`` and returns it.

        Raises UserError if the conversation's settings cannot be honoured, and NotFound.
        """
        owner, store = _owner(request), self._chats.holding(id)
        tree = await run_in_threadpool(store.read, owner, id)
        body = await self._request(owner, id, tree, parent, self._model(model, tree))
        draft = MessageDraft(role="assistant", content="", status="running", model=body.model)
        add = partial(store.messages.add, owner, id, draft, parent=parent)
        return await self._launch(request, id, body, add)

    async def resume(self, request: Request, id: str, message: str) -> Message:
        """Continues an answer that ended early, in place, and returns it. Raises UserError for any other one."""
        owner, store = _owner(request), self._chats.holding(id)
        tree = await run_in_threadpool(store.read, owner, id)
        answer = tree.path(message)[-1]
        has_begun = bool(answer.content or answer.reasoning)
        name = self._model(answer.model if answer.model in self._service.models else "", tree)
        body = await self._request(owner, id, tree, message if has_begun else answer.parent or "", name)
        return await self._launch(request, id, body, partial(store.messages.resume, owner, id, message))

    async def stop(self, request: Request, id: str, message: str) -> None:
        """Ends an answer, also one of another process, or whose end could not be stored. Raises NotFound."""
        owner = _owner(request)
        if running := self._running.get((owner, id, message)):
            running.stop("stopped")
        else:
            await run_in_threadpool(self._chats.holding(id).messages.finish, owner, id, message, "stopped")

    def answer_now(self, request: Request, id: str, message: str) -> None:
        """Ends the thoughts of an answer. Raises NotFound if it does not run."""
        self._find(request, id, message).answer_now()

    async def events(self, request: Request, id: str, message: str) -> AsyncGenerator[bytes, None]:
        """Returns the events of an answer; those of one that does not run are one snapshot. Raises NotFound."""
        if running := self._running.get((_owner(request), id, message)):
            return running.events()
        tree = await run_in_threadpool(self._chats.holding(id).read, _owner(request), id)
        return self._one_snapshot(tree.path(message)[-1])

    async def experts(self, request: Request, id: str, message: str) -> AsyncGenerator[bytes, None]:
        """Returns what the expert map shows of an answer, which is nothing if it does not run. Raises NotFound."""
        if running := self._running.get((_owner(request), id, message)):
            return expert_events(running)
        tree = await run_in_threadpool(self._chats.holding(id).read, _owner(request), id)
        tree.path(message)
        return _nothing()

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Ends all answers after the block, as interrupted; what had arrived is then stored."""
        try:
            yield
        finally:
            for running in self._running.values():
                running.stop("interrupted")
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _one_snapshot(self, message: Message) -> AsyncGenerator[bytes, None]:
        html = await self.rendered.html(message)
        whole = {"html": html, "tail": "", "thoughts": message.reasoning, "text": message.content}
        state = {"status": message.status, "error": message.error, "meter": stored_meter(message)}
        yield event({"snapshot": {**whole, **state}})

    def _model(self, asked: str, tree: Tree) -> str:
        """Returns the model that is asked for, else the conversation's, else the first. Raises NotFound."""
        models = self._service.models
        name = asked or tree.conversation.settings.get("model") or next(iter(models.slots))
        return models.slot(name).entry.name

    async def _request(self, owner: str, id: str, tree: Tree, last: str, model: str) -> ChatRequest:
        path = tree.path(last)
        texts = self._chats.holding(id).files.texts
        files = await run_in_threadpool(texts, owner, id, {file for message in path for file in message.files})
        return await run_in_threadpool(chat_request, path, tree.conversation.settings, files, model=model)

    async def _launch(self, request: Request, id: str, body: ChatRequest, store: Callable[[], Message]) -> Message:
        """Stores the answer as running and begins it, within the limits of the key."""
        asked: RequestRecord = request.state.record
        with ExitStack() as limits:
            limits.enter_context(self._auth.track(asked.key))
            limits.enter_context(self._place(asked.key.id))
            message = await run_in_threadpool(store)
            held = limits.pop_all()
        record = RequestRecord(asked.id, "POST", key=asked.key, caller=asked.caller, route=ROUTE, status=200)
        record.num_body_bytes = sum(len(part.text) for each in body.messages for part in each.content or ())
        place = (asked.key.id, id, message.id)
        running = self._running[place] = RunningAnswer(self._chats.holding(id), *place[:2], message)

        async def live() -> None:
            try:
                with held:
                    await running.run(partial(self._generate, body, record))
            finally:
                if self._running[place] is running:  # else it was continued as soon as its end was stored
                    del self._running[place]
                record.ended_at = time.perf_counter()
                for observer in self._observers:
                    observer(record)

        task = asyncio.create_task(live())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return message

    @contextmanager
    def _place(self, owner: str) -> Iterator[None]:
        """Counts an answer of ``owner`` while the block runs: each holds its prompt, and no connection bounds them."""
        if self._num_running[owner] >= MAX_RUNNING:
            raise Overloaded(f"{MAX_RUNNING} answers run already", "Wait for the end of one, or stop it")
        self._num_running[owner] += 1
        try:
            yield
        finally:
            self._num_running[owner] -= 1

    async def _generate(self, body: ChatRequest, record: RequestRecord) -> Completions:
        request = Request({"type": "http", "state": {"record": record}}, _never)
        return await self._service.generate(body.generation_request, request)

    def _find(self, request: Request, id: str, message: str) -> RunningAnswer:
        if running := self._running.get((_owner(request), id, message)):
            return running
        raise NotFound(f"The conversation has no running message {message!r}", "Read the conversation again")


def _owner(request: Request) -> str:
    record: RequestRecord = request.state.record
    return record.key.id


async def _nothing() -> AsyncGenerator[bytes, None]:
    yield event({"over": True})


async def _never() -> Json:
    """Receives nothing: no connection ends the request of an answer."""
    await asyncio.Event().wait()
    raise AssertionError
