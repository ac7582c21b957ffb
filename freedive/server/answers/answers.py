"""All answers to conversations that run now: started, continued, read, and ended with the server."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from freedive.errors import NotFound, Overloaded
from freedive.json_object import Json
from freedive.server.answers.expert_map import expert_events
from freedive.server.answers.fields import Decision
from freedive.server.answers.meter import stored_meter
from freedive.server.answers.prompt import Background
from freedive.server.answers.running import RunningAnswer
from freedive.server.auth import Auth
from freedive.server.completion_stream import Completions
from freedive.server.conversations.chats import Chats
from freedive.server.conversations.messages import answered
from freedive.server.conversations.records import Message, MessageDraft, ToolCall, Tree, refused
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
        background = await self._background(owner, id, tree, tree.path(parent), self._model(model, tree))
        body = await run_in_threadpool(background.request)
        draft = MessageDraft(role="assistant", content="", status="running", model=body.model)
        add = partial(store.messages.add, owner, id, draft, parent=parent)
        return await self._launch(request, id, background, body, add)

    async def resume(self, request: Request, id: str, message: str) -> Message:
        """Continues an answer that ended early, in place, and returns it. Raises UserError for any other one."""
        owner, store = _owner(request), self._chats.holding(id)
        tree = await run_in_threadpool(store.read, owner, id)
        background, answer = await self._continued(owner, id, tree, message)
        return await self._go_on(request, id, background, answer, partial(store.messages.resume, owner, id, message))

    async def decide(self, request: Request, id: str, message: str, call: str, answer: Decision) -> Message:
        """Takes the user's answer to the question about a call, and returns the message, which may go on now.

        ``always`` also answers the questions about the same tool. Raises UserError if the question is not open.
        """
        owner, store = _owner(request), self._chats.holding(id)
        tree = await run_in_threadpool(store.read, owner, id)
        background, asking = await self._continued(owner, id, tree, message)
        meant = next((each for each in asking.calls if each["id"] == call and each["state"] == "asked"), None)
        if asking.status != "asking" or not meant:
            raise answered()
        calls = []
        for each in asking.calls:
            is_meant = each is meant or (answer == "always" and each["name"] == meant["name"])
            if is_meant and each["state"] == "asked":
                each = await run_in_threadpool(_decided, background, each, answer)
            calls.append(each)
        allow = meant["name"] if answer == "always" and meant["name"] in background.tools else ""
        keep = partial(store.messages.decide, owner, id, message, calls, allow=allow)
        if any(each["state"] == "asked" for each in calls):
            return await run_in_threadpool(keep, "asking")
        if allow:
            background = replace(background, allowed=[*background.allowed, allow])
        return await self._go_on(request, id, background, replace(asking, calls=calls), partial(keep, "running"))

    async def stop(self, request: Request, id: str, message: str) -> None:
        """Ends an answer, also one of another process, or whose end could not be stored. Raises NotFound."""
        owner = _owner(request)
        if running := self._running.get((owner, id, message)):
            running.stop("stopped")
            return
        store = self._chats.holding(id)
        answer = (await run_in_threadpool(store.read, owner, id)).path(message)[-1]
        if answer.status == "asking":
            await run_in_threadpool(store.messages.decide, owner, id, message, refused(answer.calls), "stopped")
        else:
            await run_in_threadpool(store.messages.finish, owner, id, message, "stopped")

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
        yield event({"snapshot": {**whole, **state, "calls": message.calls}})

    def _model(self, asked: str, tree: Tree) -> str:
        """Returns the model that is asked for, else the conversation's, else the first. Raises NotFound."""
        models = self._service.models
        name = asked or tree.conversation.settings.get("model") or next(iter(models.slots))
        return models.slot(name).entry.name

    async def _continued(self, owner: str, id: str, tree: Tree, message: str) -> tuple[Background, Message]:
        """Returns an answer and what it is made from."""
        *before, answer = tree.path(message)
        name = self._model(answer.model if answer.model in self._service.models else "", tree)
        return await self._background(owner, id, tree, before, name), answer

    async def _background(self, owner: str, id: str, tree: Tree, before: list[Message], model: str) -> Background:
        texts = self._chats.holding(id).files.texts
        files = await run_in_threadpool(texts, owner, id, {file: None for each in before for file in each.files})
        return Background(before, tree.conversation.settings, files, model, tree.conversation.allowed)

    async def _go_on(
        self, request: Request, id: str, background: Background, answer: Message, store: Callable[[], Message]
    ) -> Message:
        """Continues ``answer``; ``store`` makes it run again."""
        has_begun = bool(answer.content or answer.reasoning or answer.calls)
        body = await run_in_threadpool(background.request, answer if has_begun else None)
        return await self._launch(request, id, background, body, store)

    async def _launch(
        self, request: Request, id: str, background: Background, body: ChatRequest, store: Callable[[], Message]
    ) -> Message:
        """Stores the answer as running and begins it with ``body``, within the limits of the key."""
        asked: RequestRecord = request.state.record
        with ExitStack() as limits:
            limits.enter_context(self._auth.track(asked.key))
            limits.enter_context(self._place(asked.key.id))
            message = await run_in_threadpool(store)
            held = limits.pop_all()
        place = (asked.key.id, id, message.id)
        running = self._running[place] = RunningAnswer(self._chats.holding(id), *place[:2], message, background)
        rounds = ExitStack()  # observers are told of each round when the next one begins, of the last one at the end
        first = rounds.enter_context(self._observed(asked))

        async def generate(so_far: Message | None) -> Completions:
            record = first
            if so_far:
                rounds.close()
                record = rounds.enter_context(self._observed(asked))
            return await self._generate(background.request(so_far) if so_far else body, record)

        async def live() -> None:
            try:
                with held:
                    await running.run(generate)
            finally:
                if self._running[place] is running:  # else it was continued as soon as its end was stored
                    del self._running[place]
                rounds.close()

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

    @contextmanager
    def _observed(self, asked: RequestRecord) -> Iterator[RequestRecord]:
        """Yields the record of one round of an answer, and tells observers of it after the block."""
        record = RequestRecord(asked.id, "POST", key=asked.key, caller=asked.caller, route=ROUTE, status=200)
        try:
            yield record
        finally:
            record.ended_at = time.perf_counter()
            for observer in self._observers:
                observer(record)

    async def _generate(self, body: ChatRequest, record: RequestRecord) -> Completions:
        record.num_body_bytes = sum(len(part.text) for each in body.messages for part in each.content or ())
        request = Request({"type": "http", "state": {"record": record}}, _never)
        return await self._service.generate(body.generation_request, request)

    def _find(self, request: Request, id: str, message: str) -> RunningAnswer:
        if running := self._running.get((_owner(request), id, message)):
            return running
        raise NotFound(f"The conversation has no running message {message!r}", "Read the conversation again")


def _owner(request: Request) -> str:
    record: RequestRecord = request.state.record
    return record.key.id


def _decided(background: Background, call: ToolCall, answer: Decision) -> ToolCall:
    return refused([call])[0] if answer == "refuse" else background.done(call)


async def _nothing() -> AsyncGenerator[bytes, None]:
    yield event({"over": True})


async def _never() -> Json:
    """Receives nothing: no connection ends the request of an answer."""
    await asyncio.Event().wait()
    raise AssertionError
